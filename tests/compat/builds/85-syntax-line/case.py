ALONE = "another engine fetches the front end that is named"
