"""Screens of the chat.

chat.py        the main screen: keys, commands and widget messages; view.py, what it shows without the controller
model_view.py  model state on the main screen: loading, ready, failed, throttled
recent.py      the last conversations on the first screen; listing.py, the list of all beside the messages
dialogs.py     small dialogs: a question, a text to edit, a page to read
picker.py      a list to pick from, filtered by typing
parameters.py  the editor of sampling parameters; wide.py, a table with nothing wrapped
"""
