"""Voices: text to speech, a file for each.

choice.py     which voice this device computes fast enough, measured once
phonemes.py   English words to the phonemes that both neural voices read
phoneme_voice.py  what the neural voices share
kokoro.py     Kokoro 82M: the good voice
hibari.py     Hibari, distilled from Kokoro: a light voice; harmonics.py, its sound from spectra
program.py    voices of other programs: flite, and `say` of macOS

Sound has one channel of float32 within [-1, 1], as in edge_voice.stages.
"""
