// Runs before the first paint, so that a chosen theme does not flash.
try {
  const path = new URL("../../..", document.currentScript.src).pathname; // as in store.js
  const theme = JSON.parse(localStorage.getItem(path === "/" ? "easel.theme" : `easel:${path}.theme`));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is forbidden: the system's theme counts.
}
