#!/bin/sh
# Set up voice: the library for sound devices, the packages of the extra "voice", and the models; says what it did.
# Usage: setup_voice.sh FOLDER, the folder of the environment's commands
set -eu
bin=$1

has_portaudio() {
    [ "$(uname)" = Darwin ] || ldconfig -p 2>/dev/null | grep -q libportaudio.so.2
}

echo "Packages: the extra \"voice\" ..."
"$bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[voice]'

if has_portaudio; then
    echo "PortAudio: is here."
elif command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "PortAudio: installing libportaudio2 with apt-get ..."
    apt-get update -qq >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libportaudio2 >/dev/null
elif command -v apt-get >/dev/null 2>&1; then
    echo "PortAudio: is missing, so there is no microphone and no loudspeaker yet: sudo apt-get install libportaudio2"
else
    echo "PortAudio: is missing, so there is no microphone and no loudspeaker yet. Install it with the package manager of your system."
fi

echo "Models: voice activity, end of turn, recognition, two voices (157 MB) ..."
"$bin/edge" models pull voice --quiet
"$bin/edge" models ls --here | grep -E "voice activity|end of turn|speech" || true
echo
echo "Done. Check your devices with: $bin/edge voice doctor"
echo "Then talk: $bin/edge chat --voice    or try: $bin/edge say \"Hello there.\""
