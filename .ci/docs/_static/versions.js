// Written anew by versions.py where several versions are kept; one alone needs no choice.
window.libkdVersions = {};
