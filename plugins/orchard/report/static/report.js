"use strict";
// The live page: it loads the map and the figures, and repeats the first section while the run is active.
{
  const REFRESH_MILLISECONDS = 3000;

  async function answer(address) {
    const response = await fetch(address, { credentials: "same-origin" });
    if (response.ok) return response;
    const content = await response.json().catch(() => ({}));
    const error = new Error([content.detail, content.remedy].filter(Boolean).join(" ") || `HTTP ${response.status}`);
    error.status = response.status;
    throw error;
  }

  // The server has escaped every value in the HTML.
  async function replace(section, address) {
    const text = await (await answer(address)).text();
    const parsed = new DOMParser().parseFromString(text, "text/html");
    section.replaceChildren(...parsed.body.childNodes);
  }

  function note(text) {
    return Orchard.element("p", { className: "quiet", textContent: text });
  }

  Orchard.liveThumb = (path, isLarge = false) => {
    const image = Orchard.element("img", {
      src: `thumbnail?path=${encodeURIComponent(path)}`,
      alt: "",
      loading: "lazy",
      className: isLarge ? "picture" : "thumb",
    });
    image.addEventListener("error", () => {
      image.replaceWith(Orchard.element("span", { className: `${image.className} missing`, textContent: "no picture" }));
    });
    return image;
  };

  const liveSource = {
    coordinates: async (component) => (await (await answer(`coordinates?component=${component}`)).json()).values,
    neighbours: async (path) => (await answer(`neighbours?path=${encodeURIComponent(path)}`)).json(),
    suspects: async () => (await answer("suspects")).json(),
    thumb: Orchard.liveThumb,
  };

  async function showFigures() {
    const section = document.getElementById("figures");
    try {
      await replace(section, "figures");
      await Orchard.drawAll(section);
      for (const place of section.querySelectorAll("[data-thumb]")) place.replaceWith(Orchard.liveThumb(place.dataset.thumb));
    } catch (error) {
      section.replaceChildren(note(`No figures: ${error.message}`));
    }
    document.body.dataset.figures = "shown";
  }

  async function showMap() {
    try {
      const data = await (await answer("map")).json();
      if (data.shown === 0) throw new Error("the run has published no images.");
      await Orchard.showMap(data, liveSource);
    } catch (error) {
      document.getElementById("map-note").textContent = `No map: ${error.message}`;
      document.body.dataset.map = "none";
    }
  }

  // A run that is not published has neither map nor figures: nothing is asked for.
  function showPublished() {
    const isFinished = document.body.dataset.finished === "yes";
    if (document.querySelector(".head")?.dataset.published === "yes" && isFinished) {
      showMap();
      showFigures();
      return;
    }
    const when = isFinished ? "This run has published no images" : "They appear when the run is published";
    document.getElementById("map-note").textContent = `No map and no figures. ${when}.`;
    document.getElementById("figures").replaceChildren();
    if (isFinished) document.body.dataset.map = document.body.dataset.figures = "none";
  }

  async function refresh() {
    const section = document.getElementById("happened");
    try {
      await replace(section, "happened");
    } catch (error) {
      if (error.status === 401) return; // the session has ended: a reload leads to the login
    }
    const isFinished = section.querySelector(".state-success, .state-failed");
    if (isFinished) {
      document.body.dataset.finished = "yes";
      showPublished();
    } else {
      setTimeout(refresh, REFRESH_MILLISECONDS);
    }
  }

  async function showHistory(dataset) {
    const section = document.getElementById("history");
    try {
      await replace(section, dataset === undefined ? "history" : `history?dataset=${encodeURIComponent(dataset)}`);
      for (const plot of await Orchard.drawAll(section)) {
        const points = plot.renderers[0].data_source;
        points.selected.properties.indices.change.connect(() => {
          const [first] = points.selected.indices;
          const run = first === undefined ? "" : points.data.airflow_run_id[first];
          const dag = location.pathname.split("/dags/")[1].split("/")[0];
          if (run) leave(`../../../dags/${dag}/runs/${encodeURIComponent(run)}/plugin/orchard-report`);
        });
      }
      section.querySelector("#dataset")?.addEventListener("change", (event) => showHistory(event.target.value));
    } catch (error) {
      section.replaceChildren(note(`No runs: ${error.message}`));
    }
    document.body.dataset.history = "shown";
  }

  // Airflow's frame forbids links to leave it, but not its own window to open another page.
  function leave(address) {
    const target = new URL(address, location.href).href;
    window.parent === window ? location.assign(target) : window.parent.open(target);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-leaves-frame]");
    if (link === null || link === undefined || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    leave(link.getAttribute("href"));
  });

  window.addEventListener("DOMContentLoaded", () => {
    const { view, finished } = document.body.dataset;
    if (view === "history") showHistory();
    else if (view === "run") {
      showPublished();
      if (finished !== "yes") setTimeout(refresh, REFRESH_MILLISECONDS);
    }
  });
}
