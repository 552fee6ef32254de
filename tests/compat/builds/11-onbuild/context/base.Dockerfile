FROM busybox
WORKDIR /app
ONBUILD COPY package.txt .
ONBUILD RUN cp package.txt installed
ONBUILD ARG MODE=dev
ONBUILD ENV MODE=$MODE
ONBUILD LABEL triggered="a b"
ONBUILD USER user
ONBUILD ENTRYPOINT ["run"]
LABEL base=1
