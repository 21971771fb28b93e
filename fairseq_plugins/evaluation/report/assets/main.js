showSummary();
showTraining();
showTranslations();
showExplorer();
showReproduction();
document.documentElement.dataset.ready = "true";
