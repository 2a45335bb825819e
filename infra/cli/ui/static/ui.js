// What changes is swapped whole: a table that was scrolled aside stays where it was.
"use strict";
let scrolled = new Map();
const tables = () => document.querySelectorAll(".wide[id]");
document.addEventListener("htmx:beforeSwap", () => {
  scrolled = new Map(Array.from(tables(), (each) => [each.id, [each.scrollLeft, each.scrollTop]]));
});
document.addEventListener("htmx:afterSwap", () => {
  for (const each of tables()) [each.scrollLeft, each.scrollTop] = scrolled.get(each.id) ?? [0, 0];
});
