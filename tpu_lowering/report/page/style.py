"""How the page looks, in the light and in the dark."""

STYLE = """
.tpl{--page:#fff;--ink:#1c2430;--dim:#586375;--line:#d5dbe3;--card:#f5f7fa;--blue:#2a66c9;--light:#9dbdf0;
  --gray:#a9b2bf; --red:#b3261e;--redbg:#fbeae9;--amber:#8a5a00;--amberbg:#fdf3dc;--green:#1b6e3c;--greenbg:#e5f4ea;
  --violet:#6a3fb0; --violetbg:#f0eafa;color-scheme:light;background:var(--page);color:var(--ink);
  font:15px/1.45 system-ui,sans-serif; max-width:1180px;margin:0 auto;padding:16px 20px;text-align:left}
@media (prefers-color-scheme:dark){.tpl{--page:#12161c;--ink:#e4e9f0;--dim:#a0abba;--line:#323b47;--card:#1a2028;
  --blue:#5b93ee;--light:#2f558f;--gray:#66707e;--red:#ff9a92;--redbg:#3a1d1b;--amber:#f0c060;--amberbg:#372a10;
  --green:#7fd3a0;--greenbg:#163022;--violet:#c4a6f7;--violetbg:#291f3d;color-scheme:dark}}
.tpl *{box-sizing:border-box}
.tpl h1{font-size:23px;margin:0 0 4px}
.tpl h2{font-size:18px;margin:30px 0 8px}
.tpl h3{font-size:15px;margin:16px 0 6px}
.tpl p{margin:4px 0}
.tpl .dim{color:var(--dim)}
.tpl code{font:13px/1.4 ui-monospace,Menlo,Consolas,monospace;background:none; color:inherit;padding:0;
  overflow-wrap:anywhere}
.tpl a{color:var(--blue)}
.tpl :focus-visible{outline:2px solid var(--blue);outline-offset:2px}
.tpl table{border-collapse:collapse;margin:8px 0}
.tpl th,.tpl td{padding:3px 14px 3px 0;border-bottom:1px solid var(--line); text-align:right;
  font-variant-numeric:tabular-nums;vertical-align:top}
.tpl th{font-weight:600}
.tpl th:first-child,.tpl td:first-child{text-align:left}
.tpl tr.head td{font-weight:600;padding-top:10px}
.tpl summary{cursor:pointer}
.tpl details>:not(summary){margin-left:18px}
.tpl .sides{display:grid;grid-template-columns:1fr 1fr;gap:20px;align-items:start}
@media (max-width:760px){.tpl .sides{grid-template-columns:1fr}}
.tpl .part{border:1.5px solid var(--line);border-radius:8px;padding:6px 10px 8px;background:var(--card)}
.tpl .part>.label{font-size:12px;color:var(--dim)}
.tpl .cut{text-align:center;color:var(--amber);font-size:12px;padding:3px}
.tpl .box,.tpl .run{border:1px solid var(--line);border-left-width:5px;border-radius:6px;background:var(--page);
  padding:4px 8px;margin-top:6px}
.tpl .run{border-style:dashed;border-left-width:1px;color:var(--dim);font-size:13px;background:none}
.tpl .box:target{outline:3px solid var(--blue)}
.tpl .kernel{border-left-color:var(--blue)}
.tpl .generated{border-left-color:var(--violet);background:var(--violetbg)}
.tpl .removed{border-left-color:var(--red);background:var(--redbg)}
.tpl .kept{border-left-color:var(--amber);background:var(--amberbg)}
.tpl .allocation,.tpl .fill{border-left-color:var(--gray)}
.tpl .box.removed{border-left-color:var(--red)}
.tpl .box.kept{border-left-color:var(--amber)}
.tpl .removed s{text-decoration-thickness:2px}
.tpl .badge{font-size:12px;border-radius:4px;padding:0 6px;margin-left:6px;white-space:nowrap;
  border:1px solid currentColor}
.tpl .badge.bad{color:var(--red)}
.tpl .badge.warn{color:var(--amber)}
.tpl .badge.good{color:var(--green)}
.tpl .badge.new{color:var(--violet)}
.tpl .where{display:block;color:var(--dim);margin-left:14px}
.tpl dl{margin:4px 0 4px 18px;display:grid;grid-template-columns:max-content 1fr;gap:2px 12px;font-size:14px}
.tpl dt{color:var(--dim)}
.tpl dd{margin:0;overflow-wrap:anywhere}
.tpl ul.bars{list-style:none;margin:6px 0;padding:0}
.tpl ul.bars li{display:grid; grid-template-columns:minmax(0,46%) minmax(0,1fr) 150px;gap:10px;align-items:center;
  padding:2px 0;border-bottom:1px solid var(--line)}
.tpl ul.bars .name{overflow-wrap:anywhere}
.tpl ul.bars .value{text-align:right;font-variant-numeric:tabular-nums;font-size:13px}
.tpl .track{display:block}
.tpl .bar{display:flex;height:11px;margin:1px 0}
.tpl .bar span{display:block;min-width:1px}
.tpl .c0{background:var(--blue)}
.tpl .c1{background:var(--light)}
.tpl .c2{background:var(--gray)}
.tpl .c3{background:var(--violet)}
.tpl .legend{font-size:13px;color:var(--dim)}
.tpl .legend i{display:inline-block;width:11px;height:11px;margin:0 5px 0 12px}
.tpl .legend i:first-child{margin-left:0}
.tpl svg{width:100%;height:150px;background:var(--card);border:1px solid var(--line);border-radius:6px;display:block}
.tpl svg .area{fill:var(--light);stroke:var(--blue);stroke-width:2;vector-effect:non-scaling-stroke}
.tpl svg .hit{fill:transparent}
.tpl svg .hit:hover{fill:var(--blue);fill-opacity:.25}
.tpl .whole{display:flex;height:22px;border-radius:5px;overflow:hidden;max-width:760px}
.tpl .remark{border:1px solid var(--line);border-radius:6px;padding:4px 8px;margin-top:6px;background:var(--card)}
.tpl .scroll{overflow-x:auto}
.tpl nav{margin:14px 0 0;font-size:14px;line-height:1.9}
.tpl nav a{border:1px solid var(--line);border-radius:12px;padding:2px 10px;margin-right:4px;text-decoration:none;
  white-space:nowrap;display:inline-block;line-height:1.5}
"""
