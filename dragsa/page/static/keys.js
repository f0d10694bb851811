// What keys do on a board: all that the pointer does can be done without one.

const OF_TOOLS = { d: "drag", h: "pan", b: "brush", e: "erase", r: "rectangle", p: "polygon" };
const WAYS = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] };

// Do what a key that was pressed on the board does, unless a button or a slider that has the focus takes it.
export function pressed(board, event) {
  const name = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey, { tagName } = event.target;
  const taken = tagName === "BUTTON" ? [" ", "enter"].includes(name) : tagName === "INPUT" && !command;
  if (!board.picture || taken) return;
  if (command && name === "z") board.act(event.shiftKey ? "redo" : "undo");
  else if (command && name === "y") board.act("redo");
  else if (command || event.altKey) return;
  else if (name === " ") board.space = true;
  else if (name === "escape") board.cancel();
  else if (name === "0") board.act("fit");
  else if (name === "+" || name === "-") board.zoom(name === "+" ? 1.25 : 0.8, [board.wide / 2, board.high / 2]);
  else if (board.shown.mode !== "draw" || !drawn(board, name, event.shiftKey)) return;
  event.preventDefault();
}

// Do what a key does to drags and mask; return whether it does anything.
function drawn(board, name, shift) {
  const { chosen, drags, end, path } = board;
  if (name === "delete" || name === "backspace") board.act("remove");
  else if (name === "n") board.add(middle(board));
  else if (name === "enter" && path) board.close();
  else if (name === "enter") board.choose(chosen, 1 - end);
  else if ((name === "," || name === ".") && drags.length) {
    const next = chosen < 0 ? 0 : chosen + drags.length + (name === "." ? 1 : -1);
    board.choose(next % drags.length, end);
  } else if (WAYS[name] && chosen >= 0) nudge(board, WAYS[name], shift ? 10 : 1);
  else if (OF_TOOLS[name]) board.use(OF_TOOLS[name]);
  else return false;
  return true;
}

// A drag in the middle of what is seen, a tenth of that long.
function middle(board) {
  return [0.45, 0.55].map((share) => board.inside(board.toPicture([share * board.wide, board.high / 2])).map(Math.round));
}

function nudge(board, [right, down], by) {
  const drags = board.drags.map((drag) => [...drag]), [x, y] = drags[board.chosen][board.end];
  drags[board.chosen][board.end] = board.inside([x + by * right, y + by * down]);
  board.set({ ...board.now, drags });
}
