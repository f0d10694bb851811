#!/bin/sh
# Moves a disc up and to the right, and turns it from red to yellow by the prompt, with the weights in weights/small.
# Writes out/demo/: source.png, result.png, path.png (the handles' path on the picture), sheet.png (side by side) and
# edit.json (every number).
set -eu
cd "$(dirname "$0")/.."
extra=
. scripts/setup.sh

mkdir -p out/demo
.venv/bin/dragsa edit scripts/demo/disc.png \
    --weights weights/small --preset small --guidance 5 --drag-step 10 --radius 6 --blend --seed 42 --threads 1 \
    --prompt "a red disc on a cyan ground" --target-prompt "a yellow disc on a cyan ground" \
    --drag 42,79:70,59 --drag 43,65:71,45 --drag 55,80:83,60 --drag 40,93:68,73 --drag 28,77:56,57 \
    --mask scripts/demo/mask.png \
    --out out/demo/result.png --source out/demo/source.png --path out/demo/path.png --sheet out/demo/sheet.png \
    --json out/demo/edit.json --force
for file in source.png result.png path.png sheet.png edit.json; do
    echo "out/demo/$file"
done
