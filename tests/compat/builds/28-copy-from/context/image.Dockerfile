FROM scratch
COPY thing /made/thing
COPY thing /made/deep/er/
