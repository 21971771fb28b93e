"""A web page and a JSON interface for trained models (scripts/serve.py).

served_run.py  a trained model: translations and the beam explorer's description
api.py         the fields of a request, their limits, and the OpenAPI description
app.py         the web application: routes, queue, security headers
"""
