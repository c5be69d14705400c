"""The style sheet of the page, for light and dark, wide and narrow."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fff; --card: #f7f8fa; --ink: #1d232b; --soft: #59636f; --grid: #d5dae0; --link: #0b5cad;
  --problem: #b3261e; --hint: #8a5a00; --fine: #1f7a3d;
  --c0: #1f6fb4; --c1: #d95f02; --c2: #1b8a5a; --c3: #b13c8e; --c4: #7a5cc0; --c5: #a6761d; --c6: #0097a7; --c7: #666f7a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --card: #1c2229; --ink: #e3e7ec; --soft: #9aa5b1; --grid: #3a434d; --link: #7db8f0;
    --problem: #ff8a80; --hint: #f2c14e; --fine: #7bd88f;
    --c0: #5aa9e6; --c1: #ff9447; --c2: #54c790; --c3: #ec84cc; --c4: #b09bf0; --c5: #dcb45c; --c6: #4dd0e1; --c7: #a6b0bb;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 80rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .35rem 0; max-width: 60rem; }
a { color: var(--link); }
.soft, figcaption, .unknown { color: var(--soft); }
.verdict { font-weight: 600; }
.problem { color: var(--problem); } .hint { color: var(--hint); } .fine { color: var(--fine); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1rem; }
.runs td { white-space: nowrap; }
div + h3, p + h3 { margin-top: 1.2rem; }
h3 + .plots { margin-top: .6rem; }
h3 .soft { font-weight: 400; }
figure, .finding {
  margin: 0; padding: .9rem 1rem; background: var(--card); border: 1px solid var(--grid); border-radius: .5rem;
}
figure svg { display: block; width: 100%; height: auto; margin: .4rem 0; }
figure svg text { font-family: inherit; }
figcaption { font-size: .85rem; }
.legend {
  display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .2rem 0 0; padding: 0; list-style: none; font-size: .85rem;
}
.legend svg { display: inline-block; width: 1.8rem; height: .6rem; margin: 0 .35rem 0 0; }
.finding { margin-bottom: .8rem; border-left: .3rem solid var(--problem); }
.finding.is-hint { border-left-color: var(--hint); }
.finding dl { margin: .3rem 0 0; display: grid; grid-template-columns: 6.5rem 1fr; gap: .2rem .8rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .9em; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media (max-width: 36rem) {
  body { padding: 1rem .75rem 2rem; }
  .finding dl { grid-template-columns: 1fr; } dd { margin-bottom: .3rem; }
}
@media print { body { max-width: none; } figure, .finding { break-inside: avoid; } }
"""
