"""How the report looks: one style sheet, light and dark, for desks and for phones."""

from __future__ import annotations

COLOURS = ("#64748b", "#2563eb", "#16a34a", "#dc2626", "#d97706", "#7c3aed", "#0891b2")
"""Colours of lines and bars by number; 0 is for what does not matter."""

_CLASSES = "\n".join(
    f".line.c{number},.area.c{number}{{stroke:{colour}}}.area.c{number}{{fill:{colour}}}"
    f".bar.c{number},.chip.c{number}{{fill:{colour};background:{colour}}}"
    for number, colour in enumerate(COLOURS)
)

CHART_STYLE = f"""
.chart {{ display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }}
.grid {{ stroke: var(--grid, #e2e8f0); }} .tick {{ fill: var(--soft, #64748b); }}
.line {{ fill: none; stroke-width: 2; stroke-linejoin: round; }} .area {{ stroke: none; opacity: .16; }}
.hover {{ fill: transparent; }} .hover:hover {{ fill: #64748b22; }}
.mark {{ stroke: var(--text, #0f172a); stroke-dasharray: 3 3; }}
{_CLASSES}
""".strip()

PAGE_STYLE = """
:root { color-scheme: light dark; --text: #0f172a; --soft: #5b6b82; --back: #f6f8fb; --card: #fff; --grid: #e2e8f0;
  --bad: #b91c1c; --good: #15803d; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf6; --soft: #94a3b8; --back: #0b1220; --card: #131c2e;
  --grid: #25324a; --bad: #f87171; --good: #4ade80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, -apple-system, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 4px; } h3 { font-size: 14px; margin: 18px 0 6px; }
p { margin: 0 0 12px; } .soft { color: var(--soft); } .bad { color: var(--bad); } .good { color: var(--good); }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 12px; }
section { padding: 18px 20px; margin-top: 18px; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 20px; }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: 12px; padding: 12px 14px; }
.card b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 2px 0 8px; font-size: 13px; color: var(--soft); }
.chip { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 18px; } .pair section { min-width: 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; white-space: nowrap; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
td:first-child { white-space: nowrap; } td.wrap { white-space: normal; min-width: 150px; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; white-space: nowrap; }
.meter { background: var(--grid); border-radius: 4px; height: 8px; min-width: 80px; margin-top: 7px; }
.meter i { display: block; height: 8px; border-radius: 4px; background: #dc2626; }
.trace svg { display: block; min-width: 700px; height: auto; border-radius: 8px; }
.narrow { display: none; }
@media (max-width: 760px) { main { padding: 18px 12px 40px; } h1 { font-size: 21px; } section { padding: 14px; }
  .pair { grid-template-columns: 1fr; gap: 0; } .wide { display: none; } .narrow { display: block; }
  .cards { grid-template-columns: 1fr 1fr; gap: 8px; } .card b { font-size: 19px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
""".strip()
