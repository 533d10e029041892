"""How fast models run on this device, what they take, and which settings are best: `edge bench` and `edge tune`.

values.py      what was measured, as values, and the statistics over them
measure.py     one reading of a prompt and writing of tokens, through a backend
child.py       the process in which one model is loaded and measured; process.py, its parent's side
run.py         several candidates in turns
bandwidth.py   how fast memory can be read here, and how much of that writing a token takes
energy.py      meters of energy: RAPL, tegrastats, powermetrics
tuner.py       the search for better settings; tune.py, over what one model lets one choose; tune_formats.py, over its formats
plot.py        a result as a picture
"""
