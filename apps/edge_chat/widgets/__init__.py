"""Widgets of the chat. They speak by messages and do not know the screen that they are on.

composer.py    the message being written; text.py, its text area; chip.py, its attachments;
               completion.py, the popup above it
transcript.py  the messages of the conversation; message.py, one of them; markdown.py, the text of a reply;
               lines.py draws it
cards.py       errors, a waiting message and the empty state between the messages
sidebar.py     the list of conversations; rows.py, the text of its rows
status.py      the status line
"""
