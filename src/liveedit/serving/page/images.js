// Images from a file, the clipboard or an example, within the limits of the server.

/** An image that cannot be used; the message says why. */
export class ImageError extends Error {}

const LONGEST_SIDE = 2048;

/**
 * An image of the user as { uri, width, height, name, shows }: `uri` is a data URI within the server's limits.
 * Images that are too large, or in a format that the server does not read, are drawn again and smaller.
 */
export async function readImage(blob, name, limits, shows = null) {
  if (!blob.size) throw new ImageError(`${name} is empty.`);
  const uri = await asDataUri(blob);
  const image = await decoded(uri, name);
  const { naturalWidth: width, naturalHeight: height } = image;
  if (!width || !height) throw new ImageError(`${name} has no size of its own. Give a PNG, JPEG or WebP.`);
  const found = { width, height, name, shows };
  const isTaken = limits.image_formats.includes(blob.type);
  if (isTaken && uri.length < 0.9 * limits.body_bytes && width * height <= limits.image_pixels)
    return { uri, ...found };
  return { uri: redrawn(image, limits), ...found };
}

/** An example of the server. */
export async function readExample(example, limits) {
  const response = await fetch(example.url);
  if (!response.ok) throw new ImageError("The example could not be loaded. Is the server still running?");
  return readImage(await response.blob(), example.title, limits, example.shows);
}

/** The first image among the files of a drop or a paste, or null. */
export function imageAmong(files) {
  return [...files].find((file) => file.type.startsWith("image/")) ?? null;
}

function redrawn(image, limits) {
  const { naturalWidth: width, naturalHeight: height } = image;
  let side = Math.min(LONGEST_SIDE, Math.max(width, height));
  for (;;) {
    const scale = side / Math.max(width, height);
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const uri = canvas.toDataURL("image/jpeg", 0.92);
    if ((uri.length < 0.9 * limits.body_bytes && canvas.width * canvas.height <= limits.image_pixels) || side <= 16)
      return uri;
    side = Math.round(side * 0.7);
  }
}

async function decoded(uri, name) {
  const image = new Image();
  image.src = uri;
  try {
    await image.decode();
  } catch {
    throw new ImageError(`${name} is not an image that this browser can show. Give a PNG, JPEG, WebP or GIF.`);
  }
  return image;
}

function asDataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ImageError("The file could not be read."));
    reader.readAsDataURL(blob);
  });
}
