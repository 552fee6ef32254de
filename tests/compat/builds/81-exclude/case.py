ALONE = "COPY --exclude needs BuildKit 0.14 with the syntax of labs, or 0.22"
