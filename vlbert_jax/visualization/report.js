"use strict";
// Charts: the values at the step under the pointer, and a button for a logarithmic scale.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg"), button = chart.querySelector("button");
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const guide = document.createElementNS(svg.namespaceURI, "path"), box = document.createElement("div");
  guide.setAttribute("class", "guide");
  svg.append(guide);
  box.className = "values";
  box.hidden = true;
  chart.append(box);
  for (const title of svg.querySelectorAll("circle title")) title.remove();  // the box shows the same

  const scales = ["linear", "log"].map(kind => [...svg.querySelectorAll(`.${kind} polyline`)].map(line => ({
    label: line.dataset.label,
    kind: line.getAttribute("class"),
    xs: line.getAttribute("points").split(" ").map(point => Number(point.split(",")[0])),
    steps: line.dataset.steps.split(" ").map(Number),
    values: line.dataset.values.split("|"),
  })));
  const nearest = (numbers, wanted) =>
    numbers.reduce((best, x, i) => Math.abs(x - wanted) < Math.abs(numbers[best] - wanted) ? i : best, 0);

  svg.addEventListener("pointermove", event => {
    const place = svg.getBoundingClientRect();
    const lines = scales[chart.classList.contains("logarithmic") ? 1 : 0];
    const x = (event.clientX - place.left) / place.width * width;
    const near = lines.map(line => nearest(line.xs, x));
    const distance = i => Math.abs(lines[i].xs[near[i]] - x);
    const first = lines.reduce((best, _, i) => distance(i) < distance(best) ? i : best, 0);
    const at = lines[first].xs[near[first]];
    box.replaceChildren();
    box.append(`step ${lines[first].steps[near[first]].toLocaleString("en")}`);
    lines.forEach((line, i) => {
      const k = nearest(line.xs, at);
      if (Math.abs(line.xs[k] - at) > width / 40) return;  // this line has no point there
      const row = document.createElement("span");
      row.className = line.kind;
      row.append(document.createElement("i"), `${line.label} ${line.values[k]}`);
      box.append(row);
    });
    guide.setAttribute("d", `M${at} 8V${height - 26}`);
    box.hidden = false;
    box.style.top = `${place.top - chart.getBoundingClientRect().top + 8}px`;
    const [side, other, share] = at > width / 2 ? ["right", "left", 1 - at / width] : ["left", "right", at / width];
    box.style[side] = `calc(${100 * share}% + 8px)`;
    box.style[other] = "auto";
  });
  svg.addEventListener("pointerleave", () => {
    box.hidden = true;
    guide.removeAttribute("d");
  });
  button?.addEventListener("click", () => {
    const on = chart.classList.toggle("logarithmic");
    button.setAttribute("aria-pressed", on);
  });
}
