// Read before the body is drawn, so that nothing flashes. Where the browser keeps nothing, the system decides.
document.documentElement.classList.add("js");
const theme = {
  get dark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },
  choose(name) {
    document.documentElement.dataset.theme = name;
    try {
      localStorage.setItem("spkexp-theme", name);
    } catch {
      /* then it holds until the page is closed */
    }
  },
};
try {
  const chosen = localStorage.getItem("spkexp-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {
  /* nothing is remembered */
}
