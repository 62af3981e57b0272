"use strict";
// What reads from a page with a script only: a copied formula is its TeX, a solution that a link names is open, and
// what scrolls sideways can be reached by keyboard.

document.addEventListener("copy", (event) => {
  const selection = getSelection();
  if (selection.isCollapsed || !event.clipboardData) return;
  const part = selection.getRangeAt(0).cloneContents();
  const formulas = part.querySelectorAll("math");
  if (!formulas.length) return;
  for (const formula of formulas) {
    const tex = formula.querySelector("annotation")?.textContent;
    if (tex) formula.replaceWith(formula.getAttribute("display") === "block" ? `$$${tex}$$` : `$${tex}$`);
  }
  const holder = document.createElement("div");
  holder.append(part);
  event.clipboardData.setData("text/plain", holder.textContent);
  event.clipboardData.setData("text/html", holder.innerHTML);
  event.preventDefault();
});

const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let around = target; around; around = around.parentElement) if (around.tagName === "DETAILS") around.open = true;
  target?.scrollIntoView();
};
addEventListener("hashchange", reveal);
if (location.hash) reveal();

const wide = "pre, div.math, span.math.wide, .table-wrapper, .sidebar-scroll, .toc-scroll";
const reach = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const scrolls = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
    if (scrolls) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
document.querySelectorAll(wide).forEach((part) => reach.observe(part));

// Below each find Sphinx shows a passage, for which it fetches the page; a browser allows no page from the file system
// to fetch another.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
