"use strict";
// Light and dark as in Airflow's UI, and the plots: drawn from the JSON in the page, in the colours of the theme.
const Orchard = {};
{
  const plots = new Map();
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

  function chosenTheme() {
    try {
      // Airflow's UI stores the choice of its user here.
      return window.localStorage.getItem("theme");
    } catch {
      return null; // a file that is opened from disk may have no storage
    }
  }

  function applyTheme() {
    const chosen = chosenTheme();
    const isDark = chosen === "dark" || (chosen !== "light" && prefersDark.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    for (const plot of plots.values()) paint(plot);
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function paint(plot) {
    const [text, line, faint, page] = ["--text", "--line", "--faint", "--page"].map(colour);
    plot.setv({ background_fill_color: page, border_fill_color: page, outline_line_color: faint });
    if (plot.title?.setv) plot.title.setv({ text_color: text });
    for (const axis of [...plot.left, ...plot.below]) {
      if (!("major_label_text_color" in axis)) continue;
      axis.setv({
        axis_label_text_color: text, major_label_text_color: text,
        axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: null,
      });
    }
    for (const grid of plot.center) if ("grid_line_color" in grid && grid.grid_line_color !== null) grid.setv({ grid_line_color: faint });
    for (const renderer of plot.renderers) {
      // A chosen point has a ring that stands out in both themes.
      if (plot.name === "map") renderer.selection_glyph.setv({ line_color: { value: text } });
      const value = { main: colour("--main"), marked: colour("--marked") }[renderer.name];
      if (value === undefined) continue;
      const properties = { line_color: { value } };
      if ("fill_color" in renderer.glyph) properties.fill_color = { value };
      renderer.glyph.setv(properties);
    }
  }

  Orchard.draw = async (item, target) => {
    const views = await Bokeh.embed.embed_item(item, target);
    const plot = [...views][0].model;
    plots.set(target, plot);
    paint(plot);
    return plot;
  };

  // Draw all plots whose JSON is in a part of the page.
  Orchard.drawAll = async (root) => {
    const drawn = [];
    for (const script of root.querySelectorAll("script[data-plot]")) {
      const target = document.getElementById(script.dataset.plot);
      target.replaceChildren();
      drawn.push(await Orchard.draw(JSON.parse(script.textContent), target.id));
    }
    return drawn;
  };

  Orchard.element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  window.addEventListener("storage", (event) => {
    if (event.key === "theme" || event.key === null) applyTheme();
  });
  prefersDark.addEventListener("change", applyTheme);
  applyTheme();
}
