"use strict";
// The map: points, legend, search, chosen image with its neighbours. `source` answers what the map itself does not have.
{
  // Okabe and Ito's colours, which colour-blind people can tell apart, without black and with a grey.
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#888888"];
  const MARKERS = ["circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x", "star"];
  const SYMBOLS = ["●", "■", "▲", "◆", "▼", "✚", "✖", "★"];
  const MOST_FOUND = 60;
  const element = Orchard.element;

  function decode(text, Kind) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Kind(bytes.buffer);
  }

  function number(value) {
    return value.toLocaleString("en");
  }

  Orchard.decode = decode;

  Orchard.showMap = async (data, source) => {
    const byId = (id) => document.getElementById(id);
    const codes = decode(data.codes, Int32Array);
    const columns = data.coordinates.map((text) => decode(text, Float32Array));
    const hidden = new Set();
    const indexOf = new Map(data.paths.map((path, index) => [path, index]));
    const labelOf = (index) => data.labels[codes[index]];
    let shown = [];

    byId("map-note").textContent =
      data.shown < data.total
        ? `${number(data.shown)} of ${number(data.total)} images: a sample of each label.`
        : `${number(data.total)} images.`;
    byId("map-body").hidden = false;
    const plot = await Orchard.draw(data.plot, "map-plot");
    const points = plot.renderers[0].data_source;
    const axes = { x: 0, y: Math.min(1, data.dimensions - 1) };

    async function column(component) {
      columns[component] ??= decode(await source.coordinates(component), Float32Array);
      return columns[component];
    }

    async function draw() {
      const [x, y] = [await column(axes.x), await column(axes.y)];
      shown = [];
      for (let index = 0; index < codes.length; index++) if (!hidden.has(codes[index])) shown.push(index);
      points.selected.indices = [];
      points.data = {
        x: Float32Array.from(shown, (index) => x[index]),
        y: Float32Array.from(shown, (index) => y[index]),
        color: shown.map((index) => COLOURS[codes[index] % COLOURS.length]),
        marker: shown.map((index) => MARKERS[Math.floor(codes[index] / COLOURS.length) % MARKERS.length]),
      };
    }

    // Axes.
    for (const axis of ["x", "y"]) {
      const select = byId(`axis-${axis}`);
      const names = Array.from({ length: data.dimensions }, (_, component) => {
        const ratio = data.ratios[component];
        return `component ${component + 1}` + (ratio === undefined ? "" : ` (${(100 * ratio).toFixed(1)} %)`);
      });
      const choices = source.components === undefined ? names : names.slice(0, source.components);
      select.replaceChildren(...choices.map((text, value) => element("option", { value, textContent: text })));
      select.value = axes[axis];
      select.addEventListener("change", async () => {
        axes[axis] = Number(select.value);
        await draw();
        plot.reset?.emit?.();
      });
    }

    // Legend: a box per label.
    const boxes = data.labels.map((label, code) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        box.checked ? hidden.delete(code) : hidden.add(code);
        draw();
      });
      const symbol = element("span", {
        className: "symbol",
        textContent: SYMBOLS[Math.floor(code / COLOURS.length) % SYMBOLS.length],
        ariaHidden: "true",
      });
      symbol.style.color = COLOURS[code % COLOURS.length];
      const text = element("span", { className: "label-name", textContent: label || "(no label)" });
      const count = element("span", { className: "quiet number", textContent: number(data.counts[code]) });
      const item = element("li", {}, element("label", { title: label }, box, symbol, text, count));
      return { label, box, item, code };
    });
    byId("legend").replaceChildren(...boxes.map((entry) => entry.item));
    byId("label-search").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      for (const entry of boxes) entry.item.hidden = !entry.label.toLowerCase().includes(wanted);
    });
    for (const [id, isShown] of [["show-all", true], ["hide-all", false]]) {
      byId(id).addEventListener("click", () => {
        for (const entry of boxes) {
          if (entry.item.hidden) continue;
          entry.box.checked = isShown;
          isShown ? hidden.delete(entry.code) : hidden.add(entry.code);
        }
        draw();
      });
    }

    // One image: a button with its thumbnail, its label and a note.
    function card(image, note) {
      const text = element("span", { className: "card-label", textContent: image.label || "(no label)" });
      const button = element(
        "button",
        { type: "button", className: "card", title: image.path },
        source.thumb(image.path), text, ...(note ? [element("span", { className: "quiet", textContent: note })] : []),
      );
      button.setAttribute("aria-label", `${image.path}, label ${image.label}${note ? `, ${note}` : ""}`);
      button.addEventListener("click", () => choose(image));
      return element("li", {}, button);
    }

    async function choose(image) {
      const strip = element("ul", { className: "strip" });
      const note = element("p", { className: "quiet", textContent: "Searching for the nearest neighbours …" });
      byId("detail").replaceChildren(
        source.thumb(image.path, true),
        element("h3", { textContent: image.label || "(no label)" }),
        element("code", { textContent: image.path }),
        note, strip,
      );
      const index = shown.indexOf(indexOf.get(image.path));
      if (index >= 0) points.selected.indices = [index];
      try {
        const found = await source.neighbours(image.path);
        const others = found.neighbours.filter((neighbour) => neighbour.label !== image.label).length;
        note.textContent =
          "Nearest neighbours" +
          (found.searched < found.total ? `, among ${number(found.searched)} of ${number(found.total)} images` : "") +
          (others ? `: ${others} of ${found.neighbours.length} have another label.` : ".");
        strip.replaceChildren(
          ...found.neighbours.map((neighbour) => {
            const item = card(neighbour, neighbour.similarity.toFixed(2));
            item.classList.toggle("differs", neighbour.label !== image.label);
            return item;
          }),
        );
      } catch (error) {
        note.textContent = `The neighbours cannot be shown: ${error.message}`;
      }
    }

    function list(title, indices) {
      const items = indices.slice(0, MOST_FOUND).map((index) => card({ path: data.paths[index], label: labelOf(index) }));
      const more = indices.length > MOST_FOUND ? ` The first ${MOST_FOUND} are shown.` : "";
      byId("found").replaceChildren(
        element("p", { className: "quiet", textContent: `${title}${more}` }),
        element("ul", { className: "strip" }, ...items),
      );
    }

    // Pointing at a point shows its image; clicking it, its neighbours; a lasso, all images in it.
    const hoverCard = byId("hover-card");
    let pointed = -1;
    points.inspected.properties.indices.change.connect(() => hover());
    points.inspect?.connect(() => hover());
    function hover() {
      const [first] = points.inspected.indices;
      if (first === undefined) {
        hoverCard.hidden = true;
        pointed = -1;
      } else if (shown[first] !== pointed) {
        pointed = shown[first];
        const path = data.paths[pointed];
        hoverCard.replaceChildren(
          source.thumb(path, true),
          element("strong", { textContent: labelOf(pointed) || "(no label)" }),
          element("code", { textContent: path }),
        );
        hoverCard.hidden = false;
      }
    }
    const frame = hoverCard.parentElement;
    frame.addEventListener("pointermove", (event) => {
      const box = frame.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      hoverCard.style.left = x > box.width / 2 ? "auto" : `${x + 16}px`;
      hoverCard.style.right = x > box.width / 2 ? `${box.width - x + 16}px` : "auto";
      // Above the pointer where the card would leave the window below it.
      const height = hoverCard.offsetHeight;
      const isLow = event.clientY + height + 16 > window.innerHeight;
      hoverCard.style.top = `${isLow ? y - height - 8 : y + 8}px`;
    });
    frame.addEventListener("pointerleave", () => (hoverCard.hidden = true));
    points.selected.properties.indices.change.connect(() => {
      const chosen = points.selected.indices;
      if (chosen.length === 1) {
        const index = shown[chosen[0]];
        if (byId("detail").querySelector("code")?.textContent !== data.paths[index]) {
          choose({ path: data.paths[index], label: labelOf(index) });
        }
      } else if (chosen.length > 1) {
        const indices = Array.from(chosen, (position) => shown[position]);
        const labels = new Set(indices.map(labelOf));
        list(`${number(indices.length)} images chosen, with ${labels.size} labels.`, indices);
      }
    });

    byId("search").addEventListener("input", (event) => {
      const wanted = event.target.value.trim().toLowerCase();
      if (!wanted) return byId("found").replaceChildren();
      const found = [];
      data.paths.forEach((path, index) => {
        if (path.toLowerCase().includes(wanted) || labelOf(index).toLowerCase().includes(wanted)) found.push(index);
      });
      list(found.length === 1 ? "1 image matches." : `${number(found.length)} images match.`, found);
    });

    await draw();
    document.body.dataset.map = "drawn";

    try {
      const { suspects } = await source.suspects();
      byId("suspects-note").textContent = suspects.length
        ? "These images look unlike the others of their label. They may be in the wrong folder."
        : "No image looks unlike the others of its label.";
      byId("suspects").replaceChildren(...suspects.map((suspect) => card(suspect, suspect.reason)));
    } catch (error) {
      byId("suspects-note").textContent = `The search failed: ${error.message}`;
    }
    document.body.dataset.suspects = "listed";
  };
}
