"""Screens of the chat.

chat.py        the main screen: where keys, commands and messages of the widgets arrive
model_view.py  model state on the main screen: loading, ready, failed, throttled
dialogs.py     small dialogs: a question, a text to edit, a list to pick from, a page to read
parameters.py  the editor of sampling parameters
"""
