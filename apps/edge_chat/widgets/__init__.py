"""Widgets of the chat. They speak by messages and do not know the screen that they are on.

composer.py    the message being written; composer_text.py and text.py, its text area; chip.py, its attachments;
               completion.py, the popup above it
transcript.py  the messages of the conversation; message.py, one of them; markdown.py, the text of a reply;
               lines.py draws it
fold.py        a line that stands for a text: thoughts and tool calls
passages.py    the passages below an answer
cards.py       errors, questions and a waiting message between the messages; empty.py, the content of a new conversation
below.py       the line above the message box: what is going on out of sight
choice_list.py a list to pick from; columns.py, its lines
sidebar.py     the list of conversations; rows.py, the text of its rows
status.py      the status line
voice_bar.py   what voice does: the microphone, and the sentence that is spoken
"""
