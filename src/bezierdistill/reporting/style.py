"""How a report looks: the colours of its light and dark dress, and its style sheet, for screens
from 320 pixels on and for paper.
"""

# ``ink`` and ``quiet`` are letters, ``link`` those of links and of what is ours; they stand on
# ``paper``, ``panel`` or ``mark``.
LIGHT = {
    "ink": "#1c2127",
    "quiet": "#545d69",
    "link": "#00568a",
    "paper": "#ffffff",
    "panel": "#f4f6f8",
    "mark": "#e4f1f9",
    "line": "#d3d9e0",
}
DARK = {
    "ink": "#e7eaee",
    "quiet": "#aab3be",
    "link": "#86c8f2",
    "paper": "#14171b",
    "panel": "#1e2329",
    "mark": "#15324a",
    "line": "#3b434d",
}


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in colours.items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{@media not print{{:root{{{_variables(DARK)}}}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%;text-size-adjust:100%}}
body{{font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);background:var(--paper);
 max-width:66rem;margin:0 auto;padding:1.25rem clamp(1rem,4vw,2.5rem) 3rem;overflow-wrap:anywhere}}
p,li,dl{{max-width:46rem}}
h1{{font-size:clamp(1.5rem,1.2rem + 1.6vw,2.1rem);line-height:1.2;margin:.1rem 0 .5rem;text-wrap:balance}}
h2{{font-size:1.3rem;line-height:1.3;margin:0 0 .8rem}}
h3{{font-size:1.02rem;margin:1.6rem 0 .5rem}}
section{{margin-top:2.4rem;padding-top:1.6rem;border-top:1px solid var(--line)}}
a{{color:var(--link)}} a:focus-visible,summary:focus-visible,[tabindex]:focus-visible{{outline:2px solid var(--link);outline-offset:2px}}
.kind{{color:var(--quiet);font-size:.9rem;margin:0}} .lead{{font-size:1.1rem;margin:0}}
.note,figcaption,footer{{color:var(--quiet);font-size:.9rem}}
nav ul{{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:0;margin:1.4rem 0 0;max-width:none}}
nav a{{display:inline-block;padding:.2rem 0}}
.facts{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(46%,11rem),1fr));gap:.6rem;
 margin:1.4rem 0 1rem;max-width:none}}
.facts div{{background:var(--panel);border-radius:.5rem;padding:.65rem .85rem}}
.facts dt{{color:var(--quiet);font-size:.85rem}} .facts dd{{margin:0;font-size:1.15rem;font-weight:650;line-height:1.3}}
.words{{font-size:.92rem;margin:1rem 0}} .words dt{{font-weight:650}} .words dd{{margin:0 0 .5rem;color:var(--quiet)}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}}
th,td{{padding:.38rem .8rem .38rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);overflow-wrap:normal}}
th:first-child,td:first-child{{padding-left:.6rem}}
thead th{{font-weight:600;border-bottom:2px solid var(--line);vertical-align:bottom}}
tbody th{{font-weight:inherit}} thead+tbody th{{white-space:nowrap}}
.n{{text-align:right;white-space:nowrap}}
tr.ours{{font-weight:700;background:var(--mark)}} tr.ours>:first-child{{box-shadow:inset .25rem 0 var(--link)}}
tr.starts>*{{border-top:2px solid var(--line)}}
figure{{margin:1rem 0}} figcaption{{margin-top:.35rem;max-width:46rem}}
img{{display:block;max-width:100%;height:auto;background:#fff;border-radius:.25rem}}
figure.chart img{{max-width:min(100%,44rem)}}
.gallery{{display:grid;gap:1.1rem;margin:1rem 0}} .gallery figure{{margin:0}} .gallery img{{width:100%}}
.samples{{grid-template-columns:repeat(auto-fill,minmax(min(46%,13rem),1fr))}}
.charts{{grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr))}}
.strips{{gap:.7rem}} .strips figure{{display:flex;flex-direction:column-reverse}} .strips figcaption{{margin:0 0 .15rem}}
figcaption b{{color:var(--ink)}} .ours>figcaption b::before,tr.ours>th::before{{content:"\\2605\\00a0";color:var(--link)}}
pre{{font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--panel);border-radius:.5rem;
 padding:.7rem .9rem;margin:.6rem 0;white-space:pre-wrap;overflow-wrap:anywhere}}
details{{margin:.5rem 0}} summary{{cursor:pointer;padding:.25rem 0}}
footer{{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--line)}}
@media print{{
 @page{{margin:15mm}}
 body{{max-width:none;padding:0;font-size:10pt}} nav{{display:none}} a{{color:inherit;text-decoration:none}}
 section{{margin-top:1.2rem;padding-top:.8rem}} h2,h3{{break-after:avoid}}
 figure:not(.table),tr,.facts,.words div{{break-inside:avoid}} .wide{{overflow:visible}} table{{font-size:8pt}} th,td{{padding-right:.4rem}}
 thead{{display:table-header-group}} figure.chart img{{max-width:12.5cm}}
 .samples{{grid-template-columns:repeat(4,1fr)}} .charts{{grid-template-columns:1fr 1fr}} details pre{{columns:2;font-size:7pt}}
 .facts div,pre,tr.ours{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
 details::details-content{{content-visibility:visible;display:block;block-size:auto}}
}}
"""
