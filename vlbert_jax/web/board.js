// The board: the image with its boxes. Drawing, deleting and opening are events that the server answers with a new value.
const space = "http://www.w3.org/2000/svg";
const parts = name => element.querySelector(name);
let start = null;  // corner at which the pointer was pressed, pixels of the image

function shape(parent, name, attributes, text = "") {
  const made = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

function draw() {
  const {image, width, height, about, boxes} = props.value, svg = parts("svg"), list = parts(".boxes");
  const letter = Math.max(width, height) / 34;  // height of letters, pixels of the image
  svg.replaceChildren();
  list.replaceChildren();
  parts(".about").textContent = about;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  shape(svg, "image", {href: image, width, height});
  const area = ({box: [x1, y1, x2, y2]}) => (x2 - x1) * (y2 - y1);
  const order = boxes.map((_, row) => row);  // small boxes above large ones, boxes of the answer above all
  order.sort((a, b) => Boolean(boxes[a].mark) - Boolean(boxes[b].mark) || area(boxes[b]) - area(boxes[a]));
  for (const row of order) {
    const {box: [x1, y1, x2, y2], name, mark, color} = boxes[row];
    const group = shape(svg, "g", {"data-row": row});
    shape(group, "title", {}, name);
    shape(group, "rect", {x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1), stroke: color,
      class: mark ? "strong" : ""});
    const size = mark ? 1.25 * letter : letter;
    shape(group, "text", {x: x1 + letter / 4, y: Math.max(y1, 0) + size, "font-size": size, "stroke-width": size / 6},
      mark || (boxes.length > 30 ? "" : row + 1));
  }
  boxes.forEach(({name}, row) => {
    const item = document.createElement("li"), button = document.createElement("button");
    item.dataset.row = row;
    item.append(name.startsWith("region ") ? name : `${row + 1} ${name}`, button);
    button.textContent = "×";
    button.title = `delete ${name}`;
    button.setAttribute("aria-label", button.title);
    list.append(item);
  });
}

function place(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(parts("svg").getScreenCTM().inverse());
  return [point.x, point.y];
}

function corners(event) {
  return [...start, ...place(event)];
}

function open(file) {
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => trigger("open_image", {name: file.name, data: reader.result});
  reader.readAsDataURL(file);
}

function emphasize(row) {
  for (const one of element.querySelectorAll("[data-row]")) one.classList.toggle("at", one.dataset.row === row);
}

element.addEventListener("pointerdown", event => {
  if (event.button !== 0 || !event.target.closest("svg")) return;
  event.preventDefault();
  parts("svg").setPointerCapture(event.pointerId);
  start = place(event);
  shape(parts("svg"), "rect", {class: "drawn"});
});
element.addEventListener("pointermove", event => {
  if (!start) return;
  const [x1, y1, x2, y2] = corners(event), drawn = parts("rect.drawn");
  for (const [key, value] of Object.entries({x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1),
    height: Math.abs(y2 - y1)})) drawn.setAttribute(key, value);
});
element.addEventListener("pointerup", event => {
  if (!start) return;
  const drawn = corners(event), scale = parts("svg").getScreenCTM().a;
  const moved = scale * Math.max(Math.abs(drawn[2] - drawn[0]), Math.abs(drawn[3] - drawn[1]));
  start = null;
  parts("rect.drawn").remove();
  if (moved > 4) trigger("draw_box", {corners: drawn});
});
element.addEventListener("pointercancel", () => { start = null; draw(); });
element.addEventListener("pointerover", event => {
  const over = event.target.closest("[data-row]");
  emphasize(over ? over.dataset.row : null);
});
element.addEventListener("click", event => {
  const button = event.target.closest(".boxes button");
  if (button) trigger("delete_box", {row: Number(button.parentElement.dataset.row)});
});
element.addEventListener("change", event => {
  open(event.target.files[0]);
  event.target.value = "";
});
element.addEventListener("dragover", event => { event.preventDefault(); parts(".board").classList.add("over"); });
element.addEventListener("dragleave", () => parts(".board").classList.remove("over"));
element.addEventListener("drop", event => {
  event.preventDefault();
  parts(".board").classList.remove("over");
  open(event.dataTransfer.files[0]);
});
watch("value", draw);
draw();
