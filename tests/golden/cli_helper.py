#!/usr/bin/env python3
"""A credential helper of the docker-credential-helpers protocol for tests: keeps logins in $KNARR_TEST_LOGINS, a JSON file."""

import json
import os
import sys

path = os.environ["KNARR_TEST_LOGINS"]
try:
    with open(path) as file:
        logins = json.load(file)
except FileNotFoundError:
    logins = {
        "localhost:5000": {"Username": "stored", "Secret": "from-helper"},
        "token.example": {"Username": "<token>", "Secret": "helper-token"},
    }

action, text = sys.argv[1], sys.stdin.read()
if action == "get":
    if text.strip() not in logins:
        print("credentials not found in native keychain")
        sys.exit(1)
    print(json.dumps({"ServerURL": text.strip(), **logins[text.strip()]}))
elif action == "list":
    print(json.dumps({server: login["Username"] for server, login in logins.items()}))
else:
    if action == "store":
        entry = json.loads(text)
        if entry["Username"] == "refused":
            print("error storing credentials - the keychain is locked")
            sys.exit(1)
        logins[entry["ServerURL"]] = {"Username": entry["Username"], "Secret": entry["Secret"]}
    else:
        logins.pop(text.strip(), None)
    with open(path, "w") as file:
        json.dump(logins, file, sort_keys=True)
