import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import options, run

from dragsa import cli
from dragsa.cli import edit
from dragsa.cli.options import COMMANDS, EXAMPLES
from dragsa.config import DragConfig, EditConfig, UNetConfig, suiting


def test_every_number_has_an_option() -> None:
    given = options(
        *("--tap", "block13", "--updates", "1", "--lr", "2", "--radius", "3", "--track-radius", "4", "--lam", "5"),
        *("--reach", "6", "--optimizer", "sgd", "--loss", "sum", "--reference", "current"),
        *("--patience", "7", "--lost-patience", "8"),
        *("--stall", "14", "--anchor", "0.5"),
        *("--steps", "9", "--variant", "even", "--drag-step", "10", "--control-step", "11"),
        *(
            "--control-blocks",
            "1,3-5",
            "--guidance",
            "12",
            "--blend",
            "--no-paste",
            "--crop",
            "auto",
            "--fixed-point",
            "13",
            "--size",
            "140",
        ),
        *("--control", "masked", "--object-words", "disc,star", "--mask-blocks", "14-16", "--mask-threshold", "0.5"),
        *("--lora-steps", "15", "--drag-guidance", "17"),
        *("--compile", "regions", "--checkpoint", "--source-kv", "inversion", "--source-kv-memory", "16"),
    )
    drag = DragConfig("block13", 1, 2.0, 3, 4, 5.0, 6.0, "sgd", "current", 7, 8, 14, 0.5, True, "regions", "sum", 17.0)
    masked: dict[str, Any] = {
        "control": "masked",
        "object_words": ("disc", "star"),
        "mask_blocks": (14, 15, 16),
        "mask_threshold": 0.5,
    }
    schedule: dict[str, Any] = {
        "steps": 9,
        "variant": "even",
        "guidance": 12.0,
        "fixed_point": 13,
        "size": 140,
        "lora_steps": 15,
    }
    schedule |= {"source_kv": "inversion", "source_kv_memory": 16}
    control: dict[str, Any] = {
        "drag_step": 10,
        "control_step": 11,
        "control_blocks": (1, 3, 4, 5),
        "blend": True,
        "paste": False,
        "crop": "auto",
        **masked,
    }
    assert cli.config_of(given) == EditConfig(drag, **schedule, **control)


def test_python_and_the_command_line_take_the_same_preset_and_help_prints_its_numbers() -> None:
    folder = edit.SMALL / "unet" / "config.json"
    widths = tuple(json.loads(folder.read_text(encoding="utf-8"))["block_out_channels"])
    assert edit.suits(edit.SMALL) == suiting(widths) == "small"
    assert edit.suits(edit.SMALL / "nowhere") == suiting(UNetConfig().widths) == "sd15"
    (command,) = (one for one in cli.build_parser()._subparsers._group_actions)  # type: ignore[union-attr]
    helped = " ".join(command.choices["edit"].format_help().split())  # type: ignore[index]
    assert "S: the drag is at level T - S, so many denoising steps from z_T [15; 30]" in helped
    assert "half the side of the tracking window [3]" in helped


def test_drags_are_read() -> None:
    read = options("p.png", "--drag", "1,2:3,4", "--drag", " 1.5 , 2 : .5,1e1 ")
    assert read["drag"] == [((1, 2), (3, 4)), ((1.5, 2), (0.5, 10))]


ROOT = Path(__file__).parents[2]
# The tests' model has the widths of no preset's: it would draw 512 pixels.
SHORT = {
    "edit": ("--steps", "4", "--drag-step", "1", "--updates", "1", "--size", "128"),
    "generate": ("--steps", "4", "--size", "128"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_ends_with_two_commands_that_work(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        run(command, "--help")
    assert capsys.readouterr().out.endswith("examples:\n  " + "\n  ".join(EXAMPLES[command]) + "\n")
    for name in ("scripts", "weights"):
        Path(name).symlink_to(ROOT / name)
    for line in EXAMPLES[command]:
        program, *words = shlex.split(line)
        asked = vars(cli.build_parser().parse_args(words))
        assert program == "dragsa" and asked["command"] == command
        if command in ("bench", "fetch", "ui"):  # minutes, gigabytes, and a page: the options are parsed
            continue
        code = run(*words, *SHORT.get(command, ()))
        assert code == (1 if asked.get("verify") else 0)  # the tests' model is no published one
        assert all(asked[name].is_file() for name in ("out", "frames") if name in asked)
