/* Figures as the places of a slider: one at a time, by mouse, touch or arrow keys (see plots.slider). */
(() => {
  "use strict";
  function connect(box) {
    const states = [...box.querySelectorAll("figure")];
    const names = states.map((state) => state.querySelector("figcaption").textContent);
    const input = Object.assign(document.createElement("input"), {
      type: "range", min: 0, max: states.length - 1, step: 1, value: box.dataset.start,
    });
    input.setAttribute("aria-label", box.dataset.label);
    function show() {
      states.forEach((state, place) => (state.hidden = place !== Number(input.value)));
      input.setAttribute("aria-valuetext", names[input.value]);
    }
    input.addEventListener("input", show);
    show();
    box.classList.add("moving");
    box.prepend(input);
  }
  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".slider").forEach(connect));
})();
