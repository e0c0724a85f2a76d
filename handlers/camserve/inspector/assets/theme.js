"use strict";
// Light and dark, as the system has it or as it was chosen; every page of ours has the button.

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").setAttribute("aria-label", theme === "dark" ? "Switch to light colours" : "Switch to dark colours");
}

/** The theme that was chosen here before, else the system's. */
function startTheme() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("camserve-theme");
  } catch {
    // storage may be forbidden; the choice then lasts as long as the page
  }
  setTheme(["light", "dark"].includes(chosen) ? chosen : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function changeTheme() {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  try {
    localStorage.setItem("camserve-theme", document.documentElement.dataset.theme);
  } catch {
    // as above
  }
}
