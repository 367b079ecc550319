// One switch for all folded code of a page. Without it every piece of code has its own.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const folds = document.querySelectorAll("details.hide.above-input");
  const title = document.querySelector("article h1");
  if (folds.length < 2 || !title) return;
  const button = document.createElement("button");
  const show = (open) => {
    for (const fold of folds) fold.open = open;
    button.setAttribute("aria-pressed", String(open));
  };
  button.type = "button";
  button.className = "code-switch";
  button.textContent = "Show all code";
  button.addEventListener("click", () => show(button.getAttribute("aria-pressed") !== "true"));
  button.setAttribute("aria-pressed", "false");
  title.after(button);
});
