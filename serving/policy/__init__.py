"""The Ray Serve application that hosts a bundle.

decide      raw bars to target weights, a pure function of request and bundle
app         the deployment and its routes
server      the application on this machine
"""
