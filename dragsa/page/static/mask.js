// A mask as the list of what was painted: undo takes from the list, and the picture of it is painted again.
// White may move. A stroke is {kind, erase, width, points} with points in pixels of the picture.

const LARGEST = 2048; // pixels of the mask's longer side while it is painted

export class Mask {
  constructor(width, height) {
    this.size = [width, height];
    this.scale = Math.min(1, LARGEST / Math.max(width, height));
    this.canvas = blank(Math.max(1, Math.round(width * this.scale)), Math.max(1, Math.round(height * this.scale)));
    this.strokes = [];
    this.version = 0;
  }

  // Paint the strokes; what is painted already is left where the list only grew.
  paint(strokes) {
    const grown = this.strokes.every((stroke, i) => stroke === strokes[i]);
    const ctx = this.canvas.getContext("2d", { willReadFrequently: true });
    if (!grown) ctx.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stroke of grown ? strokes.slice(this.strokes.length) : strokes) this.add(stroke);
    this.strokes = strokes;
    this.version++;
  }

  // Paint one stroke, or as much of it as there is.
  add(stroke, from = 0) {
    const ctx = this.canvas.getContext("2d", { willReadFrequently: true });
    const { width, height } = this.canvas;
    ctx.save();
    ctx.fillStyle = ctx.strokeStyle = "#fff";
    ctx.globalCompositeOperation = stroke.kind === "invert" ? "xor" : stroke.erase ? "destination-out" : "source-over";
    if (stroke.kind === "invert") ctx.fillRect(0, 0, width, height);
    if (stroke.kind === "picture") ctx.drawImage(stroke.image, 0, 0, width, height);
    ctx.scale(this.scale, this.scale);
    ctx.translate(0.5, 0.5); // a pixel's centre is at a whole number
    const points = stroke.points || [];
    if (stroke.kind === "brush") {
      ctx.lineCap = ctx.lineJoin = "round";
      ctx.lineWidth = stroke.width;
      ctx.beginPath();
      const [first, ...rest] = points.slice(Math.max(0, from - 1));
      ctx.moveTo(...first);
      for (const point of rest.length ? rest : [first]) ctx.lineTo(...point);
      ctx.stroke();
    } else if (stroke.kind === "rectangle") {
      const [[x, y], [u, v]] = points;
      ctx.fillRect(Math.min(x, u), Math.min(y, v), Math.abs(u - x), Math.abs(v - y));
    } else if (stroke.kind === "polygon") {
      ctx.beginPath();
      for (const point of points) ctx.lineTo(...point);
      ctx.closePath();
      ctx.fill();
    }
    ctx.restore();
    this.version++;
  }

  // The mask with its soft edge, in a canvas of this size.
  drawn(width, height, soft = 0) {
    const canvas = blank(width, height), ctx = canvas.getContext("2d", { willReadFrequently: true });
    if (soft > 0) ctx.filter = `blur(${(soft * width) / this.size[0]}px)`;
    ctx.drawImage(this.canvas, 0, 0, width, height);
    return canvas;
  }

  isEmpty() {
    const { width, height } = this.canvas;
    if (!this.strokes.length) return true;
    const small = this.drawn(Math.min(256, width), Math.min(256, height));
    const { data } = small.getContext("2d").getImageData(0, 0, small.width, small.height);
    return !data.some((value, i) => i % 4 === 3 && value > 8);
  }

  // A PNG of the picture's size, white on black; null where nothing is white.
  async file(soft = 0) {
    if (this.isEmpty()) return null;
    const canvas = blank(...this.size), ctx = canvas.getContext("2d");
    ctx.fillStyle = "#000";
    ctx.fillRect(0, 0, ...this.size);
    ctx.drawImage(this.drawn(...this.size, soft), 0, 0);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
}

// A mask's picture, black to white, as alpha: what a stroke of the kind "picture" paints.
export function whiteAsAlpha(image) {
  const canvas = blank(image.width, image.height), ctx = canvas.getContext("2d");
  ctx.fillStyle = "#000";
  ctx.fillRect(0, 0, canvas.width, canvas.height);
  ctx.drawImage(image, 0, 0);
  const pixels = ctx.getImageData(0, 0, canvas.width, canvas.height), { data } = pixels;
  for (let i = 0; i < data.length; i += 4) {
    data[i + 3] = Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]);
    data[i] = data[i + 1] = data[i + 2] = 255;
  }
  ctx.putImageData(pixels, 0, 0);
  return canvas;
}

// A file's bytes as a JSON request has them.
export async function base64(blob) {
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

export function blank(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}
