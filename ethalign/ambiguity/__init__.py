"""The ambiguity study: do answer probabilities match the spread of human votes?"""
