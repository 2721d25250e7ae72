"""Questions of general knowledge with their answers, for text locality. None is about a class of photographs."""

from __future__ import annotations

from typing import Final

_QUESTIONS: Final = """
What is the capital of France? Paris
What is the capital of Japan? Tokyo
What is the capital of Italy? Rome
What is the capital of Egypt? Cairo
What is the capital of Canada? Ottawa
What is the capital of Norway? Oslo
What is the capital of Greece? Athens
What is the capital of Cuba? Havana
What is the capital of Poland? Warsaw
What is the capital of Kenya? Nairobi
Which language is spoken in Brazil? Portuguese
Which language is spoken in Austria? German
Which language is spoken in Mexico? Spanish
Who wrote Hamlet? William Shakespeare
Who wrote Don Quixote? Miguel de Cervantes
Who wrote War and Peace? Leo Tolstoy
Who wrote Pride and Prejudice? Jane Austen
Who painted the Mona Lisa? Leonardo da Vinci
Who painted Guernica? Pablo Picasso
Who composed The Magic Flute? Wolfgang Amadeus Mozart
Who composed The Four Seasons? Antonio Vivaldi
Who discovered penicillin? Alexander Fleming
Who proposed the theory of relativity? Albert Einstein
Who formulated the law of gravitation? Isaac Newton
Who was the first person on the moon? Neil Armstrong
Who was the first president of the United States? George Washington
In which year did the Second World War end? 1945
In which year did the Berlin Wall fall? 1989
In which year did Columbus reach America? 1492
In which year did the French Revolution begin? 1789
What is the chemical symbol of gold? Au
What is the chemical symbol of iron? Fe
What is the chemical symbol of sodium? Na
What is the chemical formula of water? H2O
Which gas do plants take in? carbon dioxide
Which gas makes up most of the air? nitrogen
Which planet is closest to the sun? Mercury
Which planet is the largest? Jupiter
Which planet is known for its rings? Saturn
How many planets does the solar system have? eight
How many continents are there? seven
How many minutes are there in an hour? sixty
How many days does a leap year have? 366
How many sides does a hexagon have? six
How many degrees are there in a right angle? ninety
How many players does a basketball team have on the court? five
How many letters does the English alphabet have? 26
What is the largest ocean? the Pacific
What is the highest mountain in the world? Mount Everest
What is the longest river in South America? the Amazon
Which desert covers much of northern Africa? the Sahara
Which river flows through London? the Thames
Which river flows through Vienna? the Danube
On which continent is Chile? South America
On which continent is Vietnam? Asia
What is the currency of Japan? the yen
What is the currency of India? the rupee
What is the currency of Switzerland? the Swiss franc
At how many degrees Celsius does water boil? 100
At how many degrees Celsius does water freeze? zero
What is the square root of 81? nine
What is seven times eight? 56
What is half of fifty? 25
What is the opposite of north? south
"""
_HELD_OUT: Final = """
What is the capital of Spain? Madrid
What is the capital of Peru? Lima
What is the capital of Sweden? Stockholm
What is the capital of Portugal? Lisbon
What is the capital of Thailand? Bangkok
What is the capital of Hungary? Budapest
Which language is spoken in Argentina? Spanish
Which language is spoken in Quebec? French
Who wrote The Odyssey? Homer
Who wrote Faust? Johann Wolfgang von Goethe
Who wrote Oliver Twist? Charles Dickens
Who painted The Starry Night? Vincent van Gogh
Who composed the Ninth Symphony with the Ode to Joy? Ludwig van Beethoven
Who invented the telephone? Alexander Graham Bell
Who discovered radium? Marie Curie
Who developed the theory of evolution? Charles Darwin
In which year did the First World War begin? 1914
In which year did people first land on the moon? 1969
What is the chemical symbol of silver? Ag
What is the chemical symbol of oxygen? O
Which gas do people need to breathe? oxygen
Which planet is known as the red planet? Mars
Which star is nearest to the earth? the sun
How many hours does a day have? 24
How many seconds are there in a minute? sixty
How many sides does a triangle have? three
How many strings does a violin have? four
How many months does a year have? twelve
What is the smallest continent? Australia
What is the longest river in Africa? the Nile
Which ocean lies between Europe and America? the Atlantic
Which river flows through Paris? the Seine
On which continent is Morocco? Africa
What is the currency of the United Kingdom? the pound
What is the currency of Germany? the euro
What is the square root of 144? twelve
What is nine times six? 54
What is a third of thirty? ten
What is the opposite of east? west
Which metal is liquid at room temperature? mercury
"""


def _pairs(lines: str) -> tuple[tuple[str, str], ...]:
    split = (line.split("? ") for line in lines.strip().splitlines())
    return tuple((f"{question}?", answer) for question, answer in split)


TRAINING: Final = _pairs(_QUESTIONS)
"""Questions and answers for training editors."""
HELD_OUT: Final = _pairs(_HELD_OUT)
"""Questions and answers for evaluation only."""
