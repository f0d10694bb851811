"""Results of edits, measured and compared: drawn scenes with exact truth, published metrics, tables and pictures.

Scripts take its modules by name, as in `from dragsa.evaluation import cases`:

- scenes, cases: drawn scenes, and the benchmark's edits of them;
- quality, fit, figures, distances: likeness of pictures, finding a scene in a picture, a result's figures, and the
  published metrics;
- tables, sheets: means with intervals, as text and as pictures;
- runs, truth, truth_tables, sweeps: the benchmark with exact truth;
- subjects, experiments, prompts, rivals, steps_table, round_trips: the paper's figures and table again;
- plain_pickle, dragbench: DragBench;
- damage: weights files and pickles that are right, and ways to damage them;
- training: training the small model, and writing it down.
"""
