// What stands above the canvas: tools and actions, each a picture and its words.

const ICONS = {
  drag: '<path d="M4 16 L14 6 M8 5.5 H14.5 V12"/><circle cx="4" cy="16" r="1.6"/>',
  pan: '<path d="M10 2.5v15M2.5 10h15M10 2.5l-2 2M10 2.5l2 2M10 17.5l-2-2M10 17.5l2-2M2.5 10l2-2M2.5 10l2 2M17.5 10l-2-2M17.5 10l-2 2"/>',
  brush: '<path d="M16.5 3.5 9 11M9 11c-2.5-.5-4 1-4 3 0 1-1 2-2 2 3 1.5 7 .5 7-2.5z"/>',
  erase: '<path d="M8 16.5 3.5 12 11.5 4l5 5-7.5 7.5zM7 8.5l5 5M8 16.5h8.5"/>',
  rectangle: '<rect x="3.5" y="5" width="13" height="10"/>',
  polygon: '<path d="M4 13 7 4l9 2 .5 7-6 4z"/>',
  invert: '<circle cx="10" cy="10" r="6.5"/><path d="M10 3.5a6.5 6.5 0 0 1 0 13z" fill="currentColor"/>',
  undo: '<path d="M4 8h8a4 4 0 0 1 0 8H8M4 8l3.5-3.5M4 8l3.5 3.5"/>',
  redo: '<path d="M16 8H8a4 4 0 0 0 0 8h4M16 8l-3.5-3.5M16 8l-3.5 3.5"/>',
  remove: '<path d="M5 6h10M8 6V4h4v2M6 6l.7 10h6.6L14 6"/>',
  clear: '<path d="M5 5l10 10M15 5 5 15"/>',
  eye: '<path d="M2.5 10S5 5 10 5s7.5 5 7.5 5-2.5 5-7.5 5-7.5-5-7.5-5z"/><circle cx="10" cy="10" r="2.2"/>',
  fit: '<path d="M3.5 7.5v-4h4M12.5 3.5h4v4M16.5 12.5v4h-4M7.5 16.5h-4v-4"/>',
};
export const TOOLS = {
  drag: "Drag: press on the picture, pull, let go (D)",
  pan: "Move the view: pull; wheel or two fingers zoom (H, or hold Space)",
  brush: "Mask brush: what is painted may move (B)",
  erase: "Mask eraser (E)",
  rectangle: "Mask rectangle (R)",
  polygon: "Mask polygon: press corner by corner, Enter or the first corner closes it (P)",
};
export const ACTIONS = {
  invert: "Invert the mask",
  undo: "Undo (Ctrl Z)",
  redo: "Redo (Ctrl Shift Z)",
  remove: "Delete the chosen drag (Delete)",
  clear: "Clear drags and mask",
  eye: "Preview under the pointer",
  fit: "Whole picture (0)",
};
const CANVAS = `The picture: press on it, pull, let go. By keys: N draws a drag in the middle, the arrows move its end,
  Enter takes its other end, comma and full stop another drag, Delete removes it`;

// Fill the host with the tools and the canvas; return both, and the two sliders.
export function built(host) {
  host.classList.add("board");
  const button = ([name, title]) => `<button type="button" data-name="${name}" title="${title}" aria-label="${title}">
    <svg viewBox="0 0 20 20" aria-hidden="true">${ICONS[name]}</svg></button>`;
  const tools = Object.entries(TOOLS).map(button), actions = Object.entries(ACTIONS).map(button);
  host.innerHTML = `
    <div class="board-tools" role="toolbar" aria-label="Tools">
      <span>${tools.slice(0, 2).join("")}</span><span>${tools.slice(2).join("")}${actions[0]}</span>
      <span>${actions.slice(1, 5).join("")}</span><span>${actions.slice(5).join("")}</span>
      <label class="board-size">Size<input type="range" min="1" max="200" aria-label="Brush size, pixels"></label>
      <label class="board-soft">Soft edge<input type="range" min="0" max="40" aria-label="Soft edge, pixels"></label>
    </div>
    <div class="board-view"><canvas tabindex="0" role="application" aria-label="${CANVAS}"></canvas></div>`;
  const [size, soft] = host.querySelectorAll("input");
  const buttons = Object.fromEntries([...host.querySelectorAll("button")].map((one) => [one.dataset.name, one]));
  return { canvas: host.querySelector("canvas"), buttons, size, soft };
}
