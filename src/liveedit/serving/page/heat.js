// A heat map over an image, and its description in words and numbers.

import { make, percent } from "./dom.js";

const LONG_SIDE = 640;
const DARKEST = 0.82;

const ROWS = {
  2: ["top", "bottom"],
  3: ["top", "middle", "bottom"],
  4: ["top", "upper middle", "lower middle", "bottom"],
};
const COLUMNS = {
  2: ["left", "right"],
  3: ["left", "centre", "right"],
  4: ["left", "centre left", "centre right", "right"],
};

/**
 * Draw a map over its image: high values are bright, low values dark. Colours could be mistaken for colours of the
 * image. The canvas has the size of the image and lies over it.
 */
export function drawHeat(canvas, image, map) {
  const scale = LONG_SIDE / Math.max(image.width, image.height);
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (map.over !== "cells") return;
  const { left, top, width, height } = map.area;
  const most = largest(map.values).value || 1;
  pen.fillStyle = `rgb(0 0 0 / ${DARKEST})`;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const x = (column) => Math.round((left + (width * column) / map.values[0].length) * canvas.width);
  const y = (row) => Math.round((top + (height * row) / map.values.length) * canvas.height);
  map.values.forEach((line, row) =>
    line.forEach((value, column) => {
      const box = [x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row)];
      pen.clearRect(...box);
      pen.fillStyle = `rgb(8 10 14 / ${DARKEST * (1 - value / most)})`;
      pen.fillRect(...box);
    }),
  );
  frameLargest(pen, map, x, y);
}

function frameLargest(pen, map, x, y) {
  const { row, column } = largest(map.values);
  const box = [x(column) + 2, y(row) + 2, x(column + 1) - x(column) - 4, y(row + 1) - y(row) - 4];
  pen.lineWidth = 6;
  pen.strokeStyle = "rgb(0 0 0 / 0.75)";
  pen.strokeRect(...box);
  pen.lineWidth = 3;
  pen.strokeStyle = "#ffd479";
  pen.strokeRect(...box);
}

/** The two ends of the scale, as numbers. */
export function scaleOfHeat(map, kind) {
  const { value } = largest(map.values);
  return kind === "attention" ? ["0%", percent(value)] : ["0", value.toFixed(2)];
}

/** The map in a sentence or two. */
export function describeHeat(map, kind) {
  if (map.over !== "cells")
    return "This model reads the image through tokens without a place in it, so there is no map. Their shares are below.";
  const { value, row, column } = largest(map.values);
  const place = placeName(row, column, map.values);
  if (kind === "attention") {
    const even = 1 / (map.values.length * map.values[0].length);
    const cut = map.area.width < 1 || map.area.height < 1 ? " The model does not receive the margins." : "";
    const most = `Most of its attention, ${percent(value)}, is on one part: ${place}.`;
    return `${most} Spread evenly, each part would have ${percent(even)}.${cut}`;
  }
  if (value < 0.005) return "Occluding any single part has hardly any effect.";
  return `Occluding one part has the largest effect: ${place} (${value.toFixed(2)}, where 0 is no change).`;
}

/** The map as a table. */
export function tableOfHeat(map, kind) {
  const { row: best, column: bestColumn } = largest(map.values);
  const shown = (value) => (kind === "attention" ? `${(100 * value).toFixed(1)}%` : value.toFixed(3));
  const body = map.values.map((line, row) =>
    make(
      "tr",
      {},
      ...line.map((value, column) =>
        make("td", { class: row === best && column === bestColumn ? "largest" : null }, shown(value)),
      ),
    ),
  );
  return make("table", {}, make("caption", {}, `${map.note}, from the top left`), make("tbody", {}, ...body));
}

function largest(values) {
  let found = { value: values[0][0], row: 0, column: 0 };
  values.forEach((line, row) =>
    line.forEach((value, column) => {
      if (value > found.value) found = { value, row, column };
    }),
  );
  return found;
}

function placeName(row, column, values) {
  const rows = ROWS[values.length];
  const columns = COLUMNS[values[0].length];
  if (rows && columns) return `${rows[row]}, ${columns[column]}`;
  return `row ${row + 1} of ${values.length}, column ${column + 1} of ${values[0].length}`;
}
