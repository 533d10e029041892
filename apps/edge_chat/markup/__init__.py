"""Markdown as lines of text, without a screen: the chat and `edge run` draw the same lines.

document.py       `render` for a whole text; a reply that grows: only its last block is parsed again
render.py         blocks; inline.py, text inside them; code.py, colours of code
parser.py         markdown-it with formulas, footnotes and tasks
tables.py         tables in a given width
maths.py          formulas on a line; maths_block.py, on several; maths_parser.py, LaTeX to maths_tree.py;
                  maths_symbols.py, its commands
lines.py          styled pieces and wrapping; styles.py, the names of the styles
"""
