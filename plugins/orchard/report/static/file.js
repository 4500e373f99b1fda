"use strict";
// The report as one file: everything that the live page asks the server for is in the page.
window.addEventListener("DOMContentLoaded", async () => {
  const element = Orchard.element;
  const script = document.getElementById("map-data");
  const figures = document.getElementById("figures");
  await Orchard.drawAll(figures);

  // A picture is a part of the sprite sheet.
  const data = script === null ? null : JSON.parse(script.textContent);
  const indexOf = new Map((data?.paths ?? []).map((path, index) => [path, index]));
  function thumb(path, isLarge = false) {
    const place = data?.sprite?.positions[path];
    const size = isLarge ? 132 : 64;
    const className = isLarge ? "picture" : "thumb";
    if (place === undefined) return element("span", { className: `${className} missing`, textContent: "no picture" });
    const picture = element("span", { className: `${className} sprite` });
    const scale = size / data.sprite.cell;
    picture.style.backgroundSize = `${data.sprite.width * scale}px auto`;
    picture.style.backgroundPosition = `${-place[0] * scale}px ${-place[1] * scale}px`;
    picture.style.width = picture.style.height = `${size}px`;
    return picture;
  }
  for (const place of figures.querySelectorAll("[data-thumb]")) place.replaceWith(thumb(place.dataset.thumb));

  if (data === null) return;
  const neighbours = Orchard.decode(data.neighbours, Int32Array);
  const similarities = Orchard.decode(data.similarities, Float32Array);
  const codes = Orchard.decode(data.codes, Int32Array);
  await Orchard.showMap(data, {
    components: data.coordinates.length,
    coordinates: async (component) => data.coordinates[component],
    suspects: async () => ({ suspects: data.suspects }),
    thumb,
    neighbours: async (path) => {
      const start = indexOf.get(path) * data.neighbours_each;
      const found = [];
      for (let place = start; place < start + data.neighbours_each; place++) {
        const index = neighbours[place];
        if (index < 0) continue;
        found.push({ path: data.paths[index], label: data.labels[codes[index]], similarity: similarities[place] });
      }
      return { neighbours: found, searched: data.paths.length, total: data.total };
    },
  });
});
