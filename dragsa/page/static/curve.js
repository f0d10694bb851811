// The drag's course as two lines: the distance left of the handle that is furthest, and the loss.

// figure: holds an svg and two captions. course: {left: [[px per handle]], losses}; at: an update to mark, from 1.
export function drawCurve(figure, { left, losses }, at = 0) {
  const worst = left.map((row) => Math.max(...row)), svg = figure.querySelector("svg");
  const line = (values, name) => {
    const most = Math.max(...values, 1e-9), last = Math.max(1, values.length - 1);
    const points = values.map((value, i) => `${((300 * i) / last).toFixed(1)},${(84 - (78 * value) / most).toFixed(1)}`);
    return `<polyline class="${name}" points="${points.join(" ")}"/>`;
  };
  const x = at && worst.length > 1 ? (300 * (at - 1)) / (worst.length - 1) : null;
  const mark = x === null ? "" : `<polyline class="now" points="${x},0 ${x},90"/>`;
  svg.innerHTML = line(losses, "loss") + line(worst, "left") + mark;
  const n = (at || worst.length) - 1;
  figure.querySelector(".left-key").textContent = `${worst[n].toFixed(1)} px left`;
  figure.querySelector(".loss-key").textContent = `loss ${(losses[n] ?? NaN).toPrecision(3)}`;
}
