// How the report looks: colours that colour-blind readers can tell apart (after Okabe and Ito),
// also told apart by dashes; light and dark as the reader's system is.
#include "mixture/report/sections.hpp"

namespace smalltalk::report {

const char* const kStyle = R"css(
:root{color-scheme:light dark;
--bg:#faf9f6;--card:#fff;--ink:#1b2127;--soft:#55606b;--line:#e4e1d9;--good:#00664b;--bad:#a83a00;
--heat:0 96 168;--heat-ink:#fff;--mid-ink:var(--ink);
--mixture:#0060a8;--dense:#c44e00;--large:#a87400;--random:#66717c;--kmeans:#a0468a;
--e0:#0072b2;--e1:#e69f00;--e2:#009e73;--e3:#cc79a7;--e4:#56b4e9;--e5:#d55e00;--e6:#8c6bb1;--e7:#9aa12b}
@media (prefers-color-scheme:dark){:root{
--bg:#12161a;--card:#1a2026;--ink:#eae8e3;--soft:#a9b3bc;--line:#2f373f;--good:#5fd3a9;--bad:#ff9d6b;
--heat:98 182 245;--heat-ink:#0b1015;--mid-ink:#0b1015;
--mixture:#62b6f5;--dense:#ff8f52;--large:#f0c14b;--random:#9aa7b3;--kmeans:#dd8fc4;
--e0:#4aa3dc;--e1:#f0b429;--e2:#2fc297;--e3:#dd93bb;--e4:#86cdf5;--e5:#f58549;--e6:#b096d4;--e7:#c2c95a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
header,main{max-width:1120px;margin:0 auto;padding:0 20px}
header{padding-top:48px}
h1,h2{font-family:Charter,"Bitstream Charter","Sitka Text",Cambria,Georgia,"DejaVu Serif",serif;font-weight:600;text-wrap:balance}
h1{font-size:clamp(1.55rem,1rem + 2.2vw,2.5rem);line-height:1.22;letter-spacing:-.012em;margin:.3em 0 .6em;max-width:26em}
h2{font-size:1.5rem;line-height:1.25;margin:0 0 .3em}
h3{font-size:.9rem;font-weight:600;margin:0 0 .6em}
p{max-width:74ch}
a{color:inherit}
.eyebrow{color:var(--soft);margin:0;font-size:.95rem}
.eyebrow b{color:var(--ink);overflow-wrap:anywhere}
.facts{list-style:none;display:flex;flex-wrap:wrap;gap:.2em 1.4em;padding:0;margin:0 0 1.4em;color:var(--soft);font-size:.92rem}
.facts b{color:var(--ink);font-variant-numeric:tabular-nums}
nav{display:flex;flex-wrap:wrap;gap:.3em 1.2em;border-block:1px solid var(--line);padding:.65em 0;margin-bottom:24px;font-size:.92rem}
small{display:block;font-weight:400;font-size:.8rem;color:var(--soft)}
nav a{text-decoration:none;color:var(--soft)}
nav a:hover,nav a:focus-visible{color:var(--ink);text-decoration:underline}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(158px,1fr));gap:12px;margin:0 0 24px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.card .label{font-size:.83rem;color:var(--soft);line-height:1.3;min-height:2.6em}
.card .value{font-size:1.75rem;font-weight:650;letter-spacing:-.02em;line-height:1.35;font-variant-numeric:tabular-nums}
.card .note{font-size:.8rem;color:var(--soft);line-height:1.4}
.good .value,.good>span{color:var(--good)}
.bad .value,.bad>span{color:var(--bad)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:26px 28px;margin:0 0 20px;scroll-margin-top:12px}
.lede{color:var(--soft);margin:0 0 1.2em}
section>p:not(.lede):not(.missing){font-size:.92rem;color:var(--soft);margin:.9em 0 0}
.missing{border-left:3px solid var(--dense);padding:.35em .9em;margin:.6em 0;color:var(--soft);background:var(--bg);border-radius:0 6px 6px 0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:0 -28px}
.scroll:focus-visible{outline:2px solid var(--mixture);outline-offset:-2px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.5em .7em;text-align:left;border-bottom:1px solid var(--line);vertical-align:top;white-space:nowrap}
thead th{color:var(--soft);font-weight:500;font-size:.8rem;line-height:1.3;vertical-align:bottom;white-space:normal}
tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
th:first-child{padding-left:28px;position:sticky;left:0;background:var(--card)}
th:last-child,td:last-child{padding-right:28px}
table:has(small) tbody th{white-space:normal;min-width:9em}
.num{text-align:right}
tr.own>*{background:linear-gradient(rgb(var(--heat) / .07) 0 0) var(--card)}
tr.own th{font-weight:650}
tr.part th{padding-left:44px}
.narrow{max-width:620px}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
.key{display:inline-block;width:.72em;height:.72em;border-radius:3px;margin-right:.5em;background:var(--c)}
.bar{display:block;height:5px;margin-top:5px;min-width:64px;background:var(--line);border-radius:3px}
.bar i{display:block;height:100%;background:var(--c);border-radius:3px}
.split{display:flex;overflow:hidden;height:9px;width:140px}
.split i{border-radius:0;flex:none}
.interval{display:block;width:100%;min-width:130px;height:22px;overflow:visible}
.interval line{stroke:var(--c);stroke-width:2}
.interval .zero{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
.interval circle{fill:var(--c)}
.interval .member{opacity:.4}
.better{--c:var(--good)}.worse{--c:var(--bad)}.undecided{--c:var(--soft)}
.dumbbell{display:block;width:100%;min-width:150px;height:22px;overflow:visible}
.dumbbell line{stroke:var(--soft);stroke-width:2;opacity:.55}
.dumbbell circle{fill:var(--c)}
.mixture{--c:var(--mixture)}.dense{--c:var(--dense)}.dense_large_batch{--c:var(--large)}
.random_shards{--c:var(--random)}.tfidf_kmeans{--c:var(--kmeans)}.other{--c:var(--soft)}
.e0{--c:var(--e0)}.e1{--c:var(--e1)}.e2{--c:var(--e2)}.e3{--c:var(--e3)}
.e4{--c:var(--e4)}.e5{--c:var(--e5)}.e6{--c:var(--e6)}.e7{--c:var(--e7)}
.chart{margin:0}
.ylab,.xlab{font-size:.8rem;color:var(--soft)}
.xlab{text-align:right;margin:26px 0 8px}
.ylab{margin-bottom:8px}
.plot{position:relative;height:220px;margin-left:46px}
.tall .plot{height:360px}
.plot svg{display:block;width:100%;height:100%;border-bottom:1px solid var(--soft)}
.ys span,.xs span{position:absolute;font-size:.76rem;color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap;line-height:1}
.ys span{right:100%;margin-right:8px;transform:translateY(50%)}
.xs span{top:100%;margin-top:8px;transform:translateX(-50%)}
path.grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke;fill:none}
.line{fill:none;stroke:var(--c);stroke-width:2.4;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
.line.thin{stroke-width:1;opacity:.42}
.line.dense_large_batch{stroke-dasharray:9 5}
.line.random_shards{stroke-dasharray:1 5}
.line.tfidf_kmeans{stroke-dasharray:9 4 1 4}
.plot rect{fill:var(--c)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.25em 1.3em;padding:0;margin:.2em 0 0;font-size:.86rem}
.legend .key{width:1.5em;height:0;border-radius:0;background:none;border-top:3px solid var(--c);vertical-align:.25em}
.legend .dense_large_batch{border-top-style:dashed}.legend .random_shards{border-top-style:dotted}.legend .tfidf_kmeans{border-top-style:double}
.legend b{font-variant-numeric:tabular-nums;color:var(--soft);font-weight:500}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:30px 36px}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);pointer-events:none}
.tip{position:absolute;top:0;z-index:2;pointer-events:none;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.5em .75em;font-size:.8rem;line-height:1.5;box-shadow:0 4px 18px rgb(0 0 0 / .14);white-space:nowrap;font-variant-numeric:tabular-nums}
.tip i{display:inline-block;width:.7em;height:.7em;border-radius:3px;margin-right:.5em}
.maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:26px 40px}
.map{min-width:0}
.map .scroll{margin:0}
.heat{border-collapse:separate;border-spacing:2px}
.heat th,.heat td,.heat td:last-child{border:0;padding:.42em .3em}
.heat thead th{text-align:center;white-space:nowrap}
.heat thead th:first-child{text-align:left;padding-left:0}
.heat tbody th{padding:.42em .6em .42em 0}
.heat .key{margin-right:.35em}
.heat td{text-align:center;min-width:34px;border-radius:4px;background:rgb(var(--heat) / calc(.04 + .96 * var(--share)))}
.heat td.full{color:var(--heat-ink)}.heat td.mid{color:var(--mid-ink)}
.maps.wide{grid-template-columns:1fr}
.zero{display:flex;flex-wrap:wrap;align-items:baseline;gap:.1em .8em;margin:0 0 1em}
.zero span{font-size:clamp(2.4rem,8vw,3.6rem);font-weight:650;letter-spacing:-.03em;line-height:1.1}
.zero p{margin:0;color:var(--soft);max-width:24em}
.examples{align-items:start}
.examples ul{list-style:none;padding:0;margin:0}
.examples li{border-left:2px solid var(--line);padding-left:.8em;margin:.7em 0}
.examples p{font-size:.8rem;color:var(--soft);margin:0}
.examples p b{color:var(--ink);font-weight:600}
.examples q{display:block;quotes:none;unicode-bidi:isolate;font-size:.88rem;line-height:1.45;overflow-wrap:anywhere}
details summary{cursor:pointer;padding:.3em 0}
pre{overflow-x:auto;background:var(--bg);border:1px solid var(--line);border-radius:8px;padding:16px;line-height:1.5}
dl{margin:0;display:grid;grid-template-columns:10em 1fr;gap:.7em 1.4em}
dt{font-weight:600}
dd{margin:0;color:var(--soft);max-width:70ch}
@media (max-width:600px){
header,main{padding:0 12px}header{padding-top:26px}
section{padding:18px 16px;border-radius:10px}.scroll{margin:0 -16px}
th:first-child{padding-left:16px}th:last-child,td:last-child{padding-right:16px}
tr.part th{padding-left:28px}
.cards{grid-template-columns:1fr 1fr;gap:8px}.card{padding:11px 12px}.card .value{font-size:1.45rem}
.tall .plot{height:270px}.plot{height:200px;margin-left:40px}
dl{grid-template-columns:1fr;gap:.2em}dd{margin-bottom:.8em}}
@media print{body{background:#fff}section{break-inside:avoid}nav{display:none}}
)css";

// Without script the page loses nothing but the readings under the pointer.
const char* const kScript = R"js(
document.querySelectorAll('figure[data-x0]').forEach(function (figure) {
  var plot = figure.querySelector('.plot'), svg = plot.querySelector('svg');
  var cursor = plot.querySelector('.cursor'), tip = plot.querySelector('.tip');
  var d = figure.dataset, x0 = +d.x0, x1 = +d.x1, y0 = +d.y0, y1 = +d.y1;
  var few = 9 > svg.querySelectorAll('.thin').length;  // more would not fit beside the pointer
  var lines = Array.from(svg.querySelectorAll(few ? 'polyline' : 'polyline:not(.thin)')).reverse().map(function (line) {
    return {label: line.dataset.label, color: getComputedStyle(line).stroke,
            points: line.getAttribute('points').split(' ').map(function (p) { return p.split(',').map(Number); })};
  });
  function short(v) {
    var units = [[1e9, ' B'], [1e6, ' M'], [1e4, ' k']];
    for (var i = 0; i !== units.length; i++)
      if (Math.abs(v) >= units[i][0]) return (v / (units[i][1] === ' k' ? 1e3 : units[i][0])).toPrecision(3) + units[i][1];
    return String(+v.toPrecision(4));
  }
  function hide() { cursor.hidden = tip.hidden = true; }
  plot.addEventListener('pointerleave', hide);
  plot.addEventListener('pointermove', function (event) {
    var box = svg.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
    if (0 > share || share > 1) { hide(); return; }
    tip.textContent = short(x0 + share * (x1 - x0)) + ' · ' + (d.xLabel.split(',')[0]);
    lines.forEach(function (line) {
      var best = line.points.reduce(function (a, b) {
        return Math.abs(b[0] - 1000 * share) >= Math.abs(a[0] - 1000 * share) ? a : b; });
      if (Math.abs(best[0] - 1000 * share) > 60) return;
      var row = document.createElement('div'), mark = document.createElement('i');
      mark.style.background = line.color;
      row.append(mark, line.label + '  ' + (y1 - best[1] / 1000 * (y1 - y0)).toPrecision(4));
      tip.append(row);
    });
    cursor.hidden = tip.hidden = false;
    cursor.style.left = 100 * share + '%';
    tip.style.left = share > 0.5 ? 'auto' : 'calc(' + 100 * share + '% + 12px)';
    tip.style.right = share > 0.5 ? 'calc(' + 100 * (1 - share) + '% + 12px)' : 'auto';
  });
});
)js";

}  // namespace smalltalk::report
