"""A frontier of students: how fast over how near to the teacher, found by short trainings. Needs the extra [distill].

points.py   candidates and points, which of them survive a round, and the choice of one
search.py   trains candidates in rounds, and halves them
measure.py  the last ones as GGUF: speed beside the teacher, and questions answered as it does
report.py   the frontier as JSON, Markdown and a picture
steps.py    all of it as steps of a conversion
"""
