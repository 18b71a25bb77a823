// The shelf: images next to each other, each with a line below. Opening images is an event that the server answers.
const part = name => element.querySelector(name);

function draw() {
  const {images, several} = props.value;
  part("input").multiple = several;
  part(".open span").textContent = several ? "Open images" : "Open an image";
  part(".images").replaceChildren(...images.map(({image, name, line, best}) => {
    const item = document.createElement("li"), shown = document.createElement("img"), text = document.createElement("span");
    shown.src = image;
    shown.alt = name;
    text.textContent = line ? `${line}\n${name}` : name;
    item.classList.toggle("best", best);
    item.append(shown, text);
    return item;
  }));
}

function read(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done({name: file.name, data: reader.result});
    reader.onerror = failed;
    reader.readAsDataURL(file);
  });
}

function open(files) {
  if (files.length) Promise.all([...files].map(read)).then(all => trigger("open_images", {files: all}));
}

element.addEventListener("change", event => {
  open(event.target.files);
  event.target.value = "";
});
element.addEventListener("dragover", event => { event.preventDefault(); part(".shelf").classList.add("over"); });
element.addEventListener("dragleave", () => part(".shelf").classList.remove("over"));
element.addEventListener("drop", event => {
  event.preventDefault();
  part(".shelf").classList.remove("over");
  open(event.dataTransfer.files);
});
watch("value", draw);
draw();
