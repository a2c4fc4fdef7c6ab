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
