PARTS: dict = {}
