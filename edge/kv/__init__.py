"""KV cache: sequences in memory, blocks on disk.

answers.py      replies to exact repeats of a request
background.py   the thread that writes blocks and keeps the store in order
blocks.py       one block as one sealed file
bundle.py       a conversation with its blocks in one zip file
cache.py        memory and disk together, as the scheduler uses them
carry.py        blocks between a store and a bundle
disk.py         block files together with their index
doubts.py       checks of an index that is whole and may still be wrong
entries.py      entries of that directory: kinds, permissions, whole files
expiry.py       pins that end, old blocks, budgets of models
files.py        the directory of a store
foreign.py      blocks of another engine, compared with this one's
formats.py      formats of blocks and index, and those of other versions of edge
index.py        the SQLite index of the blocks
keys.py         the secret of a store, and the keys derived from it
limits.py       bytes written today, names of models, ends of pins
listing.py      what is in a store, in bounded memory
lookup.py       longest stored prefix of a token sequence
maintenance.py  work on a whole store: scan, verify, forget, clear
manage.py       calls of the block store that people make
opening.py      opens a store, also on a full disk and after failures
open.py         the store of the settings; the fingerprint of a loaded model
options.py      options of a store
owners.py       users of blocks: the index compared with the log
reader.py       the thread that asks the disk, so that a turn need not wait for it
records.py      values that a store takes and returns
rows.py         schema, queries and changes of the index
slots.py        the sequences of a backend
store.py        the block store: find, read, put, lease
tree.py         radix tree of the tokens in memory
uses.py         log of pins and users beside the index
verify.py       restored blocks against a cold run
"""
