ALONE = "COPY --parents needs BuildKit 0.13 with the syntax of labs, or 0.20"
