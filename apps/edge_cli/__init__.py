"""The command `edge`. Commands are imported when they are called, so that `edge --help` answers at once.

main.py        the entry point: the list of commands; errors as text and exit codes; group.py, groups of commands
suggest.py     the command that was probably meant by an unknown one
app.py         the runtime as commands see it
run.py         `edge run`; prompt.py, its message; constraint.py, what its answer has to be;
               asking.py, what commands that answer share; answer.py, the ways to write one;
               markdown.py, Markdown on a terminal; escalation.py, what would be sent to the next tier, and who answered
batch.py       `edge batch`; score.py, `edge score`; jsonl.py, files of JSON lines, and results that survive the process
embed.py       `edge embed`
say.py         `edge say`
listen.py      `edge listen`; voice_models.py, models for voice, fetched when a command first needs them
voice.py       `edge voice`; voice_checks.py, the checks of its doctor
chat.py        `edge chat`; first_use.py, the engines compared before the first one; serve.py, `edge serve`; mcp.py, `edge mcp`
models.py      `edge models`; models_listing.py, its tables; models_voice.py, models for voice;
               recommend.py, `edge models recommend`
devices.py     `edge devices`; doctor.py, `edge doctor`; checks.py, the checks of it
config.py      `edge config`; settings_check.py, values that are known elsewhere
conversations.py  `edge conversations`; conversations_listing.py, its tables
docs.py        `edge docs`; docs_listing.py, its tables; docs_ask.py, docs_warm.py, two commands of it
kv.py          `edge kv`; kv_listing.py, its tables; kv_warm.py, kv_slot.py, two commands of it
bench.py       `edge bench`; tune.py, `edge tune`; profile.py, `edge profile`
ladder.py      `edge ladder`; ladder_child.py, the process that it measures
convert.py     `edge convert`; convert_names.py, names of results; convert_frontier.py, a search of students;
               convert_verify.py, `edge convert verify`
evaluate.py    `edge eval`
completion.py  `edge completion`; completers.py, values for the shell
options.py     options that several commands share
output.py      the only module that writes to the terminal; progress.py, downloads and conversions on stderr
streams.py     stdout, stderr and stdin as they are; ascii.py, where they are not UTF-8; signals.py, SIGTERM and SIGHUP
"""
