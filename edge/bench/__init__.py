"""`edge bench`, `tune`, `profile` and `ladder`: speed and memory of models on this device, and the best settings.

values.py      measurements as values, and statistics over them
measure.py     one prefill and one decode through a backend
child.py       the process that loads and measures one model
process.py     the parent's side of that process
candidates.py  models times engines times settings
run.py         rounds over several candidates
bandwidth.py   memory bandwidth, and the share of it that decode uses; a matrix product
recommend.py   which models suit this device, and how fast they would answer
tuner.py       the search for better settings; knobs.py, what is tried; pairs.py, two engines at once
tune.py        that search in each format of a model; tune_options.py, its limits
format_tuner.py  that search in one format; workers.py, the processes that measure
divergence.py  how far two engines' next-token distributions are apart; losses.py, whether an engine may be that far
trace.py       times the stages of turns, and writes them as a file for Perfetto
profile.py     where the time of a turn goes, and what to change
plot.py        a result as a picture

ladder.py          the time of a reply, step by step from the naive way
ladder_steps.py    what each step adds
ladder_work.py     the workloads that every step is measured with
ladder_child.py    one run of the program that answers them
ladder_values.py   the result as values
ladder_profile.py  from the result to settings
ladder_plot.py     the result as a picture
"""
